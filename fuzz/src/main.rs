//! The short run, for a machine with a stable toolchain only: each target over its corpus, and over
//! inputs made from the corpus and a fixed seed.

use std::path::Path;
use std::time::Instant;

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    /// Changes a few places of an input, or makes one of nothing.
    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if self.below(8) == 0 {
            return (0..self.below(300)).map(|_| self.below(256) as u8).collect();
        }
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(input.len() + 1);
            match self.below(4) {
                0 => input.truncate(at),
                1 => input.insert(at, self.below(256) as u8),
                2 => {
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len() + 1);
                    let len = self.below(other.len() - from + 1);
                    input.splice(at..at, other[from..from + len].iter().copied());
                }
                _ if at < input.len() => input[at] = self.below(256) as u8,
                _ => {}
            }
        }
        input.truncate(1000);
        input
    }
}

fn fuzz(target: &str, runs: usize, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(directory.join("corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let corpus: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let mut random = Random(1);
    let made = (0..runs).map(|_| random.input(&corpus));
    let start = Instant::now();
    for input in corpus.iter().cloned().chain(made) {
        if std::panic::catch_unwind(|| run(&input)).is_err() {
            let found = directory.join("artifacts").join(format!("{target}-short"));
            std::fs::create_dir_all(found.parent().unwrap()).unwrap();
            std::fs::write(&found, &input).unwrap();
            println!("{target}: the input is in {}", found.display());
            std::process::exit(1);
        }
    }
    let seconds = start.elapsed().as_secs_f32();
    println!("{target}: {} inputs of the corpus, {runs} made, {seconds:.1} s", corpus.len());
}

/// short [RUNS]: so many inputs for each end, and a hundred times as many for the decoder.
fn main() {
    let runs = std::env::args().nth(1).map_or(10_000, |runs| runs.parse().expect("a number"));
    fuzz("decoder", runs * 100, handoff_fuzz::decoder::run);
    fuzz("broker", runs, handoff_fuzz::broker::run);
    fuzz("backend", runs, handoff_fuzz::backend::run);
}

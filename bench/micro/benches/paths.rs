//! The time that each path takes, with criterion.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn paths(criterion: &mut Criterion) {
    for mut path in handoff_micro::paths() {
        let mut group = criterion.benchmark_group(path.name);
        group.throughput(Throughput::Elements(path.times.into()));
        group.bench_function("run", |bencher| bencher.iter(|| (path.run)()));
        group.finish();
    }
}

criterion_group!(benches, paths);
criterion_main!(benches);

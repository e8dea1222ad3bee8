//! With the feature `header`: makes the C header from the `extern "C"` functions in src/ffi, into
//! OUT_DIR and, where the Makefile asks for it with HANDOFF_HEADER, to that file. Without it there
//! is nothing to do, because the header is committed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "header")]
    header::make()?;
    Ok(())
}

#[cfg(feature = "header")]
mod header {
    use std::path::PathBuf;
    use std::{env, fs};

    /// In the order in which the header presents them.
    const SOURCES: [&str; 11] = [
        "status",
        "clock",
        "token",
        "transport",
        "ack",
        "attempt",
        "fallback",
        "peer",
        "listener",
        "broker",
        "backend",
    ];

    pub fn make() -> Result<(), Box<dyn std::error::Error>> {
        println!("cargo::rerun-if-changed=src/ffi");
        println!("cargo::rerun-if-changed=cbindgen.toml");
        println!("cargo::rerun-if-env-changed=HANDOFF_HEADER");

        let mut config = cbindgen::Config::from_file("cbindgen.toml")?;
        // cbindgen makes neither string constants nor initialisers.
        config.after_includes = Some(version_macros()? + &fs::read_to_string("src/ffi/init.h")?);
        // Only these files: cbindgen would take every public constant of the crate.
        let mut builder = cbindgen::Builder::new().with_config(config);
        for source in SOURCES {
            builder = builder.with_src(format!("src/ffi/{source}.rs"));
        }
        // mod.rs has no public items.
        if fs::read_dir("src/ffi")?.filter_map(Result::ok).filter(is_rust).count()
            != SOURCES.len() + 1
        {
            return Err("src/ffi has a file that the header does not know of".into());
        }
        let mut header = Vec::new();
        builder.generate()?.write(&mut header);

        fs::write(PathBuf::from(env::var("OUT_DIR")?).join("handoff.h"), &header)?;
        if let Some(path) = env::var_os("HANDOFF_HEADER") {
            fs::write(path, &header)?;
        }
        Ok(())
    }

    fn is_rust(entry: &fs::DirEntry) -> bool {
        entry.path().extension().is_some_and(|extension| extension == "rs")
    }

    /// The version of Cargo.toml as macros, for `#if`.
    fn version_macros() -> Result<String, env::VarError> {
        let part = |name| env::var(format!("CARGO_PKG_VERSION{name}"));
        Ok(format!(
            "\n/** The version of this header; handoff_version() tells the library's. */\n\
             #define HANDOFF_VERSION \"{}\"\n\
             #define HANDOFF_VERSION_MAJOR {}\n\
             #define HANDOFF_VERSION_MINOR {}\n\
             #define HANDOFF_VERSION_PATCH {}\n\n",
            part("")?,
            part("_MAJOR")?,
            part("_MINOR")?,
            part("_PATCH")?,
        ))
    }
}

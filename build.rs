//! Makes the C headers, into OUT_DIR and, where the Makefile asks for it with HANDOFF_HEADERS, into
//! that directory. The headers are committed, so a build without the feature "header" needs no
//! cbindgen.

#[cfg(feature = "header")]
#[path = "tools/header.rs"]
mod header;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    println!("cargo::rerun-if-env-changed=HANDOFF_HEADERS");
    #[cfg(feature = "header")]
    {
        use std::{env, path::PathBuf};
        header::write(&PathBuf::from(env::var("OUT_DIR")?))?;
        if let Some(directory) = env::var_os("HANDOFF_HEADERS") {
            header::write(&PathBuf::from(directory))?;
        }
    }
    Ok(())
}

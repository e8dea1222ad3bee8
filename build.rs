//! With the feature "header": makes the C headers, into OUT_DIR and, where the Makefile asks for it
//! with HANDOFF_HEADERS, into that directory. Without it there is nothing to do, because the headers
//! are committed.

#[cfg(feature = "header")]
#[path = "tools/header.rs"]
mod header;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "header")]
    header::make()?;
    Ok(())
}

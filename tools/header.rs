//! Makes the C headers from src/ffi with cbindgen.
//!
//! cbindgen groups what it writes by kind: constants, types, functions. A reader wants each type
//! right before the calls that use it, so the items are put back into the order of the sources.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// A header of its own, made from some files of src/ffi.
struct Part {
    name: &'static str,
    includes: &'static [&'static str],
    sources: &'static [&'static str],
}

const PARTS: [Part; 8] = [
    Part {
        name: "status",
        includes: &["<stdbool.h>", "<stddef.h>", "<stdint.h>"],
        sources: &["status", "reason", "errors"],
    },
    Part { name: "peer", includes: &["\"status.h\""], sources: &["peer"] },
    Part {
        name: "broker",
        includes: &["<sys/uio.h>", "\"peer.h\"", "\"status.h\""],
        sources: &["broker/handle", "broker"],
    },
    Part { name: "backends", includes: &["\"broker.h\"", "\"status.h\""], sources: &["backends"] },
    Part { name: "backend", includes: &["\"peer.h\"", "\"status.h\""], sources: &["backend"] },
    Part { name: "tls", includes: &["\"status.h\""], sources: &["tls"] },
    Part { name: "layout", includes: &["\"status.h\""], sources: &["layout"] },
    Part {
        name: "raw",
        includes: &["\"peer.h\"", "\"status.h\""],
        sources: &[
            "raw/token",
            "raw/store",
            "raw/transport",
            "raw/ack",
            "raw/attempt",
            "raw/listener",
            "raw/peer",
            "raw/pending",
            "raw/failures",
        ],
    },
];

pub fn make() -> Result<(), Box<dyn Error>> {
    for source in ["tools/header.rs", "src/ffi", "cbindgen.toml"] {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed=HANDOFF_HEADERS");
    write(Path::new(&env::var("OUT_DIR")?))?;
    match env::var_os("HANDOFF_HEADERS") {
        Some(directory) => write(Path::new(&directory)),
        None => Ok(()),
    }
}

/// Writes handoff.h and, in a directory beside it, its parts.
fn write(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory.join("handoff"))?;
    let text = |name: &str| fs::read_to_string(format!("src/ffi/header/{name}.h"));
    fs::write(directory.join("handoff.h"), text("handoff")?)?;
    for part in &PARTS {
        let source = part
            .sources
            .iter()
            .map(|source| fs::read_to_string(format!("src/ffi/{source}.rs")))
            .collect::<Result<String, _>>()?;
        let mut out = text(part.name)?;
        let guard = format!("HANDOFF_{}_H", part.name.to_uppercase());
        out += &format!("\n#ifndef {guard}\n#define {guard}\n\n");
        for include in part.includes {
            out += &format!("#include {include}\n");
        }
        if part.name == "status" {
            out += &version_macros()?;
            out += &text("macros")?;
        }
        out += "\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n";
        let order = declarations(&source);
        out += &in_order(&generate(part, &order)?, &order)?;
        out += &format!("#ifdef __cplusplus\n}}\n#endif\n\n#endif /* {guard} */\n");
        fs::write(directory.join(format!("handoff/{}.h", part.name)), out)?;
    }
    Ok(())
}

/// What the sources declare for C, and on which line.
fn declarations(source: &str) -> HashMap<&str, usize> {
    let lines = source.lines().enumerate();
    lines.filter_map(|(at, line)| Some((declared(line)?, at))).collect()
}

fn generate(part: &Part, order: &HashMap<&str, usize>) -> Result<String, Box<dyn Error>> {
    let mut config = cbindgen::Config::from_file("cbindgen.toml")?;
    // Also the types that no function of this part uses.
    config.export.include = order.keys().map(|name| (*name).to_owned()).collect();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in part.sources {
        builder = builder.with_src(format!("src/ffi/{source}.rs"));
    }
    let mut text = Vec::new();
    builder.generate()?.write(&mut text);
    Ok(String::from_utf8(text)?)
}

/// The items of a header in the order in which the sources declare them.
fn in_order(header: &str, order: &HashMap<&str, usize>) -> Result<String, Box<dyn Error>> {
    let mut items = Vec::new();
    for item in items_of(header) {
        let name = name_of(&item).ok_or_else(|| format!("what is this?\n{item}"))?;
        let at = *order.get(name.as_str()).ok_or_else(|| format!("{name} is not in src/ffi"))?;
        items.push((at, tidy(&item, &name)));
    }
    items.sort();
    if items.len() != order.len() {
        return Err(format!("cbindgen left out one of {:?}", order.keys()).into());
    }
    Ok(items.into_iter().map(|(_, item)| item + "\n").collect())
}

/// The name that a line of Rust declares for C.
fn declared(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ")?;
    let kinds = ["const ", "type ", "struct ", "extern \"C\" fn "];
    let rest = kinds.into_iter().find_map(|kind| line.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// The items of cbindgen's output: each a comment and a declaration, with blank lines between.
fn items_of(header: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0;
    for line in header.lines() {
        depth += line.matches(['{', '(']).count();
        depth -= line.matches(['}', ')']).count();
        if line.is_empty() && depth == 0 {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            *item += line;
            item.push('\n');
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

/// A declaration without its comment.
fn declaration(item: &str) -> &str {
    item.split_once("*/\n").map_or(item, |(_, declaration)| declaration)
}

fn name_of(item: &str) -> Option<String> {
    let declaration = declaration(item);
    if let Some(rest) = declaration.strip_prefix("#define ") {
        return rest.split_whitespace().next().map(str::to_owned);
    }
    let before = match declaration.strip_prefix("typedef ") {
        Some(rest) => rest.trim_end().strip_suffix(';')?,
        None => declaration.split_once('(')?.0,
    };
    before.rsplit([' ', '*', '\n']).next().map(str::to_owned)
}

/// Writes an item as a person would.
fn tidy(item: &str, name: &str) -> String {
    let (comment, declaration) = item.split_at(item.len() - declaration(item).len());
    let comment = short_comments(comment);
    if declaration.starts_with("#define ") {
        // A negative value in parentheses, so that it is one operand anywhere.
        let value = declaration.trim_end().rsplit(' ').next().unwrap_or_default();
        let value = if value.starts_with('-') { format!("({value})") } else { value.to_owned() };
        format!("{comment}#define {name} {value}\n")
    } else if declaration.starts_with("typedef ") {
        let mut text = comment + &short_comments(declaration);
        if declaration.contains("    size_t size;\n") {
            text += &initializer(declaration, name);
        }
        text
    } else {
        comment + &function(declaration)
    }
}

/// Comments of one line on one line.
fn short_comments(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < lines.len() {
        if let [first, middle, last, ..] = lines[at..] {
            let body = middle.trim_start().strip_prefix("* ");
            if let (true, Some(body), "*/") = (first.ends_with("/**"), body, last.trim_start()) {
                if first.len() + body.len() + 4 <= 100 {
                    out += &format!("{first} {body} */\n");
                    at += 3;
                    continue;
                }
            }
        }
        out += lines[at];
        out.push('\n');
        at += 1;
    }
    out
}

/// The macro that initialises a struct: its size, no descriptor, and zero for the rest.
fn initializer(declaration: &str, name: &str) -> String {
    let fields = declaration.lines().filter_map(|line| {
        // Not the lines of comments.
        let field = line.strip_prefix("    ")?.strip_suffix(';')?;
        let field = Some(field).filter(|field| field.starts_with(char::is_alphabetic))?;
        Some(match field.rsplit([' ', '*']).next()? {
            "size" => format!("sizeof({name})"),
            "fd" => "-1".to_owned(),
            "token" => "{ { 0 } }".to_owned(),
            array if array.ends_with(']') => "{ 0 }".to_owned(),
            _ if field.contains('*') => "NULL".to_owned(),
            _ => "0".to_owned(),
        })
    });
    let macro_name = format!("{}_INIT", name.to_uppercase());
    let mut out = format!("#define {macro_name} \\\n    {{ ");
    let mut column = 6;
    for (index, value) in fields.enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        if column + value.len() > 90 {
            out += ", \\\n      ";
            column = 6;
        } else {
            out += separator;
            column += separator.len();
        }
        out += &value;
        column += value.len();
    }
    out + " }\n"
}

/// A function's declaration on one line where it fits, else its parameters below each other.
fn function(declaration: &str) -> String {
    let text = declaration.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.replace("struct handoff_", "handoff_");
    let (attribute, text) = match text.split_once("HANDOFF_MUST_USE ") {
        Some((_, text)) => ("HANDOFF_MUST_USE\n", text.to_owned()),
        None => ("", text),
    };
    if text.len() <= 100 {
        return format!("{attribute}{text}\n");
    }
    let (before, parameters) = text.split_once('(').unwrap_or((&text, ""));
    let indent = format!(",\n{}", " ".repeat(before.len() + 1));
    format!("{attribute}{before}({}\n", parameters.replace(", ", &indent))
}

/// The version of Cargo.toml as macros.
fn version_macros() -> Result<String, env::VarError> {
    let part = |name| env::var(format!("CARGO_PKG_VERSION{name}"));
    Ok(format!(
        "\n/** The version of this header. handoff_version() returns the library's. */\n\
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

//! The law of the house, kept by a test: who imports whom, where `unsafe` may stand, how long a file may be, and which
//! names are not used.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, lowest first. A room imports only rooms before it.
const ROOMS: [&str; 14] =
    ["error", "progress", "num", "kernels", "tensor", "quant", "metrics", "nn", "convert", "train", "ptq", "io", "eval", "guide"];
/// Rooms that no other room imports.
const LEAVES: [&str; 2] = ["io", "eval"];
const CEILING: usize = 500;
const FORBIDDEN_NAMES: [&str; 8] = ["utils", "util", "helpers", "helper", "common", "misc", "tmp", "temp"];
const FORBIDDEN_MACROS: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];

/// The source without comments and without the contents of string literals.
fn code_of(source: &str) -> String {
    let (mut code, mut chars) = (String::new(), source.chars().peekable());
    let mut depth = 0;
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('/', Some('/')) if depth == 0 => while chars.next_if(|&c| c != '\n').is_some() {},
            ('/', Some('*')) => {
                chars.next();
                depth += 1;
            }
            ('*', Some('/')) if depth > 0 => {
                chars.next();
                depth -= 1;
            }
            _ if depth > 0 => {}
            ('"', _) => {
                code.push('"');
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                code.push('"');
            }
            // A quote as a character would open a string that never ends.
            ('\'', Some('"')) => code.push_str("' '"),
            (c, _) => code.push(c),
        }
    }
    code
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The rooms named after `crate::`, in uses and in paths, `use crate::{a, b}` included.
fn rooms_imported(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => rooms.extend(words(&std::mem::take(&mut item)).next().map(str::to_owned)),
                    c if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            rooms.extend(words(&item).next().map(str::to_owned));
        } else {
            rooms.extend(words(rest).next().map(str::to_owned));
        }
    }
    rooms
}

/// What a file of `src` breaks. `path` is relative to `src`.
fn offences(path: &str, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code = code_of(source);
    let room = path.split(['/', '.']).next().unwrap_or_default();
    if path != "lib.rs" {
        match ROOMS.iter().position(|r| *r == room) {
            None => found.push(format!("{path}: `{room}` is no room of the plan")),
            Some(own) => {
                for import in rooms_imported(&code) {
                    match ROOMS.iter().position(|r| *r == import) {
                        Some(other) if other > own => found.push(format!("{path}: {room} imports {import}, a room above it")),
                        Some(_) if import != room && LEAVES.contains(&import.as_str()) => {
                            found.push(format!("{path}: nobody imports {import}"))
                        }
                        Some(_) => {}
                        None => found.push(format!("{path}: import `crate::{import}` by its room")),
                    }
                }
            }
        }
    }
    if room != "kernels" && words(&code).any(|word| word == "unsafe") {
        found.push(format!("{path}: `unsafe` outside src/kernels"));
    }
    found
}

/// What any file of the crate breaks.
fn disorder(path: &str, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = source.lines().count();
    if lines > CEILING {
        found.push(format!("{path}: {lines} lines, {CEILING} at most"));
    }
    let code = code_of(source);
    for name in FORBIDDEN_MACROS.iter().filter(|name| code.contains(*name)) {
        found.push(format!("{path}: {name}"));
    }
    let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folders = path.split('/').rev().skip(1);
    let modules = code.match_indices("mod ").filter_map(|(at, _)| words(&code[at + 4..]).next());
    for name in std::iter::once(stem).chain(folders).chain(modules) {
        if FORBIDDEN_NAMES.contains(&name) || name.starts_with("new_") || name.contains("_v2") || name.ends_with("_tmp") {
            found.push(format!("{path}: the name `{name}` says nothing"));
        }
    }
    found
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_law_is_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        rust_files(&root.join(folder), &mut files);
    }
    assert!(files.len() > 30, "only {} files: the law was not read out to the whole house", files.len());
    let mut found = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if let Some(in_src) = path.strip_prefix("src/") {
            found.extend(offences(in_src, &source));
        }
        // This file names what it forbids.
        if path != "tests/architecture.rs" {
            found.extend(disorder(&path, &source));
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn offenders_are_found() {
    let caught = |path: &str, source: &str| !offences(path, source).is_empty();
    assert!(caught("tensor/dense.rs", "use crate::quant::Scheme;"));
    assert!(caught("num/mod.rs", "fn f() { crate::tensor::g() }"));
    assert!(caught("quant/mod.rs", "use crate::{error::Error, nn::{Model, Layer}};"));
    assert!(caught("ptq/dynamic.rs", "use crate::Model;"), "imports name the room");
    assert!(caught("eval/mod.rs", "use crate::io::safetensors;"));
    assert!(caught("attic/mod.rs", ""));
    assert!(caught("nn/mod.rs", "unsafe { *p }"));
    assert!(!caught("nn/mod.rs", "// unsafe\n/* unsafe */ fn f() { g(\"unsafe\", 'x', '\"'); } // \""));
    assert!(!caught("kernels/tile.rs", "unsafe { *p }"));
    assert!(!caught("nn/mod.rs", "use crate::tensor::{Tensor, Shape}; use crate::nn::Layer; use crate::num::exp;"));
    assert!(!caught("ptq/dynamic.rs", "//! [`x`](crate::eval::compare)"));

    let messy = |path: &str, source: &str| !disorder(path, source).is_empty();
    assert!(messy("src/nn/a.rs", &"\n".repeat(501)));
    assert!(!messy("src/nn/a.rs", &"\n".repeat(500)));
    assert!(messy("src/nn/utils.rs", "") && messy("src/common/mod.rs", "") && messy("src/nn/mod.rs", "mod helpers;"));
    assert!(messy("src/nn/conv_v2.rs", "") && messy("src/nn/new_conv.rs", ""));
    assert!(messy("src/nn/a.rs", "fn f() { todo!() }") && messy("tests/a.rs", "#[ignore] fn f() {}"));
    assert!(!messy("src/nn/a.rs", "// todo! later\nfn f() {}"));
}

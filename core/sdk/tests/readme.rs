//! The example of the project's README is the one of the crate's documentation, which is compiled and run as a test of it.
#![allow(clippy::unwrap_used)]

/// The first block of code that begins with `fence`, without the lines that rustdoc hides.
fn block(text: &str, fence: &str) -> String {
    let code = text.split(fence).nth(1).unwrap().split("```").next().unwrap();
    let shown = code.lines().filter(|line| !line.starts_with("# "));
    shown.collect::<Vec<_>>().join("\n").trim().to_string()
}

fn root(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("'{path}': {e}"))
}

/// The crate's documentation, as rustdoc reads it.
fn crate_docs() -> String {
    let source = root("src/lib.rs");
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect()
}

#[test]
fn the_readmes_plugin_is_the_compiled_one_in_thirty_lines() {
    let readme = root("../../README.md");
    let shown = block(&readme, "```rust\n");
    assert_eq!(shown, block(&crate_docs(), "```\n"));
    let lines = shown.lines().count();
    assert!(lines <= 30, "{lines} lines");
    assert!(shown.contains("oracle.gradient("), "{shown}");
    assert!(readme.contains("A plugin of your own, in 30 lines"));
}

#[test]
fn every_layer_has_its_shapes_in_the_crates_docs() {
    let (docs, nn) = (crate_docs(), root("../nn/src/ops/mod.rs"));
    let layers = root("../nn/src/layers.rs");
    let structs = layers.lines().filter_map(|line| line.strip_prefix("pub struct "));
    let operators = nn.lines().filter_map(|line| line.strip_prefix("pub use "));
    // What a list names, but the switch of the operators and the two ways of padding.
    let names = operators
        .flat_map(|list| {
            list.split_once("::")
                .unwrap()
                .1
                .split(|c: char| !c.is_alphanumeric() && c != '_')
        })
        .filter(|name| {
            ![
                "",
                "with_composed_ops",
                "Padding",
                "conv2d",
                "conv_transpose2d",
                "linear",
            ]
            .contains(name)
        });
    let structs = structs.map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap());
    let missing: Vec<&str> = structs
        .chain(names)
        .filter(|name| !docs.contains(&format!("(nn::{name})")))
        .collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

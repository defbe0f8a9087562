//! `completions` and `man`: what shells and `man` know of the commands and their options.

use crate::terminal::console;
use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use std::path::PathBuf;

/// Flags of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell of the script; in bash, use it with `source <(advae-host completions bash)`
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Folder for the pages, which is created: one page for the program and one for each command
    dir: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
/// Where they cannot be written.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<i32> {
    let name = command.get_name().to_string();
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    console::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Writes a man page for the program and one for each command.
///
/// # Errors
/// Where the folder or a page cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<i32> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder '{}'", dir.display()))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write into '{}'", dir.display()))?;
    console::print(&format!(
        "man pages of advae-host in '{0}': man -l {0}/advae-host.1\n",
        dir.display()
    ))?;
    Ok(0)
}

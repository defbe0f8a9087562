//! `advae-host`: evaluates defences of image classifiers against adversarial examples.

use advae_host::commands::{
    audit, data, doctor, eval, lock, merge, new, plugins, purify, report, reproduce, run, score, shell, train,
};
use advae_host::experiment::{COMMAND, TF32, on_large_stack, serve};
use advae_host::isolation::{Ends, Limits, adopt, supervise};
use advae_host::plugin::owner;
use advae_host::terminal::exit::{EXIT_FAILED, end, watch};
use advae_host::terminal::{console, version};
use advae_host::training::memory;
use anyhow::Result;
use clap::{ArgAction, CommandFactory, Parser, Subcommand};

/// Evaluates defences of image classifiers against adversarial examples.
///
/// Classifiers, purifiers, attacks and threat models are plugins. The host re-measures whatever they return.
#[derive(Parser)]
#[command(name = "advae-host", version = version::LINE)]
struct Cli {
    /// Print what is being done (-v), and how it is done (-vv)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// What this process shares with the one that started it to run plugins
    #[arg(long, hide = true, value_name = "ENDS")]
    child: Option<Ends>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attack classifiers behind purifiers and print a table
    Eval(Box<eval::EvalArgs>),
    /// Judge a claimed robust accuracy: run the strongest attacks, and check that their results are meaningful
    Audit(Box<audit::AuditArgs>),
    /// Print the report of a results file again
    Report(report::ReportArgs),
    /// Run an experiment file: matrices of evaluations, in one process or several
    Run(run::RunArgs),
    /// Write down the hashes of everything that an evaluation or an experiment is made of, for --locked
    Lock(Box<lock::LockArgs>),
    /// Join the results files of several processes
    Merge(merge::MergeArgs),
    /// Print the JSON schema of experiment files, for editors
    Schema,
    /// Measure and classify saved adversarial images again
    Score(score::ScoreArgs),
    /// List all plugins that are found, or show the settings of the named ones
    Plugins(plugins::PluginsArgs),
    /// List the datasets that are found, with counts and hashes, or check the named ones
    Data(data::DataArgs),
    /// Test whether a plugin follows the contract
    Doctor(doctor::DoctorArgs),
    /// Purify images and draw the results
    Purify(purify::PurifyArgs),
    /// Train a classifier or a purifier
    Train(Box<train::TrainArgs>),
    /// Measure a table of the AdvAE paper and print it beside the paper's figures
    Reproduce(reproduce::ReproduceArgs),
    /// Write the crate of a new plugin from a template
    New(new::NewArgs),
    /// Print the completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Write the man pages
    Man(shell::ManArgs),
    /// Run plugins for another process
    #[command(name = COMMAND, hide = true)]
    Serve {
        /// Read before all else: TF32 is not forbidden.
        #[arg(long)]
        tf32: bool,
    },
}

impl Command {
    /// What holds for the process that the whole command runs in, where that is to be another one. Evaluations see to their own.
    fn apart(&self) -> Option<Limits> {
        match self {
            Self::Audit(args) => args.isolation.limits(),
            Self::Score(args) => args.isolation.limits(),
            Self::Plugins(args) => args.isolation.limits(),
            Self::Doctor(args) => args.isolation.limits(),
            Self::Purify(args) => args.isolation.limits(),
            Self::Train(args) => args.isolation.limits(),
            _ => None,
        }
    }
}

fn main() {
    prepare_environment();
    watch(owner);
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // A reader who has gone away is told by the exit code all the same.
        let _ = error.print();
        end(error.exit_code())
    });
    if let Some(ends) = cli.child
        && let Err(error) = adopt(ends)
    {
        eprintln!("error: {error}");
        end(EXIT_FAILED);
    }
    console::log(cli.verbose);
    if matches!(cli.command, Command::Train(_)) {
        memory::keep();
    }
    // A panic comes out of the worker as an error of one line.
    std::panic::set_hook(Box::new(|info| tracing::debug!("{info}")));
    let work = || match cli.command.apart() {
        Some(limits) => supervise(limits),
        None => run(cli.command),
    };
    let code = on_large_stack(work).unwrap_or_else(|error| {
        eprintln!("error: {}", console::with_list(&error));
        EXIT_FAILED
    });
    end(code);
}

/// Variables that libraries of plugins read, and what they are where the user says nothing.
///
/// candle 0.11 runs large element-wise operations on one spinning pool a library, behind a lock that makes the host's
/// workers wait for each other: every worker computes on its own thread instead. cuDNN rounds the factors of f32 convolutions to 10 bits
/// (TF32) unless it is told not to: that moves X's logits by 4e-3, and gradients at an image by as much as the others in its batch decide.
const ENVIRONMENT: [(&str, &str); 2] = [("CANDLE_NUM_THREADS", "1"), ("NVIDIA_TF32_OVERRIDE", "0")];

fn prepare_environment() {
    // Where it was asked for, networks choose by themselves when to round.
    let tf32 = std::env::args().any(|word| ["tf32", "--precision=tf32", TF32].contains(&word.as_str()));
    for (variable, value) in ENVIRONMENT {
        let rounds = tf32 && variable == "NVIDIA_TF32_OVERRIDE";
        if std::env::var_os(variable).is_none() && !rounds {
            // SAFETY: the first thing `main` does: no other thread runs that could read the environment.
            unsafe { std::env::set_var(variable, value) };
        }
    }
}

fn run(command: Command) -> Result<i32> {
    match command {
        Command::Eval(args) => eval::run(*args),
        Command::Audit(args) => audit::run(*args),
        Command::Report(args) => report::run(args),
        Command::Run(args) => run::run(args),
        Command::Lock(args) => lock::run(*args),
        Command::Merge(args) => merge::run(&args),
        Command::Schema => run::print_schema(),
        Command::Score(args) => score::run(args),
        Command::Plugins(args) => plugins::run(args),
        Command::Data(args) => data::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Purify(args) => purify::run(args),
        Command::Reproduce(args) => reproduce::run(args),
        Command::Train(args) => train::run(&args),
        Command::New(args) => new::run(args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::Serve { .. } => serve(),
    }
}

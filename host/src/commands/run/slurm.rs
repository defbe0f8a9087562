//! An experiment as one job array of Slurm: a task per part.
//!
//! Every task writes files of its own in the folder of the results, which all nodes share: rows, a log, and its exit code when it ends. Nothing
//! else is asked of Slurm than to start tasks and to say which of them are still there, so that no accounting is needed.

use super::parts::{Parts, TRIES};
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use anyhow::{Context, Result, bail, ensure};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How often Slurm is asked at first, and at most seldom.
const ASK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// How long the files of a task that ended may take to be seen here.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// How an experiment runs on a Slurm cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Slurm {
    /// Tasks of the array; each measures one part
    pub tasks: usize,
    /// Partition
    pub partition: Option<String>,
    /// Time limit of a task: "02:00:00"
    pub time: Option<String>,
    /// CPUs per task
    pub cpus: Option<usize>,
    /// GPUs per task
    pub gpus: Option<usize>,
    /// Memory per task: "8G"
    pub memory: Option<String>,
    /// Account that is charged
    pub account: Option<String>,
    /// Tasks that run at the same time, at most
    pub at_once: Option<usize>,
    /// Further options of sbatch: ["--constraint=v100"]
    pub options: Vec<String>,
    /// Commands that a task runs first: ["module load cuda"]
    pub before: Vec<String>,
}

impl Slurm {
    /// The options of sbatch.
    fn options(&self) -> Vec<String> {
        let named = |name: &str, value: Option<String>| value.map(|value| format!("--{name}={value}"));
        let number = |value: Option<usize>| value.map(|n| n.to_string());
        [
            named("partition", self.partition.clone()),
            named("time", self.time.clone()),
            named("cpus-per-task", number(self.cpus)),
            named("gpus-per-task", number(self.gpus)),
            named("mem", self.memory.clone()),
            named("account", self.account.clone()),
        ]
        .into_iter()
        .flatten()
        .chain(self.options.clone())
        .collect()
    }
}

/// Measures an experiment on a cluster and joins what its tasks found into `out`.
///
/// # Errors
/// Where Slurm cannot be asked or refuses the job, a task fails too often, or files cannot be joined.
pub fn measure(slurm: &Slurm, file: &Path, out: &Path, flags: &[String], cancel: &Cancel) -> Result<()> {
    ensure!(
        slurm.tasks > 0,
        "'{}' does not say how many tasks: add a table [slurm] with tasks = 20",
        file.display()
    );
    let parts = Parts::new(out, slurm.tasks);
    let script = out.with_extension("sbatch");
    let text = text(slurm, file, out, flags, &std::env::current_exe()?);
    std::fs::write(&script, text).with_context(|| format!("cannot write '{}'", script.display()))?;
    let mut left: Vec<usize> = (1..=slurm.tasks).collect();
    parts.forget_logs();
    for round in 1..=TRIES {
        parts.forget_codes(&left)?;
        let job = submit(slurm, &script, &left)?;
        console::say(&format!("job {job}: {} tasks", left.len()));
        follow(&job, cancel)?;
        if cancel.is_cancelled() {
            break;
        }
        let lost = parts.lost(&left, SEEN_WITHIN);
        if lost.is_empty() {
            left.clear();
            break;
        }
        let listed = list(&lost);
        let next = if round < TRIES { ": begun again" } else { "" };
        console::say(&format!("tasks {listed} of job {job} were lost{next}"));
        left = lost;
    }
    parts.join()?;
    if !left.is_empty() && !cancel.is_cancelled() {
        bail!(
            "tasks {} were lost {TRIES} times: their logs are beside '{}'",
            list(&left),
            out.display()
        )
    }
    Ok(())
}

/// The script of a task.
fn text(slurm: &Slurm, file: &Path, out: &Path, flags: &[String], program: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let (stem, count) = (out.with_extension(""), slurm.tasks);
    let flags: String = flags.iter().map(|flag| format!(" {flag}")).collect();
    let before: String = slurm.before.iter().map(|line| format!("{line}\n")).collect();
    format!(
        "#!/bin/bash\n{before}i=$SLURM_ARRAY_TASK_ID\n{program} run {file} --out {out} --shard \"$i/{count}\" --threads \
         \"${{SLURM_CPUS_PER_TASK:-1}}\"{flags}\ncode=$?\n# Written under its name when it is whole.\necho $code > {stem}\".$i-of-{count}.code.new\" && mv \
         {stem}\".$i-of-{count}.code.new\" {stem}\".$i-of-{count}.code\"\nexit $code\n",
        program = quoted(program),
        file = quoted(file),
        out = quoted(out),
        stem = quoted(&stem),
    )
}

/// Hands the tasks over, and gives the number of their job.
fn submit(slurm: &Slurm, script: &Path, tasks: &[usize]) -> Result<String> {
    let at_once = slurm.at_once.map(|n| format!("%{n}")).unwrap_or_default();
    let log = script.with_extension(format!("%a-of-{}.log", slurm.tasks));
    let said = ask(
        "sbatch",
        &[
            &[
                "--parsable".to_string(),
                "--job-name=advae".into(),
                "--open-mode=append".into(),
            ][..],
            &[
                format!("--array={}{at_once}", list(tasks)),
                format!("--output={}", log.display()),
            ],
            &slurm.options(),
            &[script.display().to_string()],
        ]
        .concat(),
    )?;
    // With several clusters: `job;cluster`.
    let job = said.trim().split(';').next().unwrap_or_default().to_string();
    ensure!(!job.is_empty(), "sbatch did not name a job: it said '{}'", said.trim());
    Ok(job)
}

/// Waits until no task of the job is left. A stop ends the job.
fn follow(job: &str, cancel: &Cancel) -> Result<()> {
    let mut wait = ASK[0];
    loop {
        let start = std::time::Instant::now();
        while start.elapsed() < wait {
            std::thread::sleep(Duration::from_millis(100));
            if cancel.is_cancelled() {
                ask("scancel", &[job.to_string()])?;
                console::say(&format!("job {job} is cancelled"));
                return Ok(());
            }
        }
        wait = (wait * 3 / 2).min(ASK[1]);
        // A job that ended is unknown after a while: that is an answer, too.
        let queue = Command::new("squeue").args(["--noheader", "--jobs", job]).output();
        let queue = queue.context("cannot ask squeue")?;
        if queue.status.success() && !queue.stdout.trim_ascii().is_empty() {
            continue;
        }
        let said = String::from_utf8_lossy(&queue.stderr).into_owned();
        if queue.status.success() || said.contains("Invalid job id") {
            return Ok(());
        }
        console::say(&format!("squeue does not answer, asked again later: {}", said.trim()));
    }
}

fn ask(program: &str, args: &[String]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start '{program}': expected Slurm on this machine"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} refuses: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `1-3,7` for 1, 2, 3 and 7.
fn list(tasks: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = vec![];
    for task in tasks {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *task => *last = *task,
            _ => ranges.push((*task, *task)),
        }
    }
    let range = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_listed_as_ranges() {
        assert_eq!(list(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
        assert_eq!(list(&[4]), "4");
    }

    #[test]
    fn the_table_becomes_options_of_sbatch() {
        let slurm: Slurm = toml::from_str(
            "tasks = 3\npartition = \"main\"\ntime = \"1:00\"\ngpus = 1\nmemory = \"8G\"\noptions = [\"--nice\"]",
        )
        .unwrap();
        let expected = [
            "--partition=main",
            "--time=1:00",
            "--gpus-per-task=1",
            "--mem=8G",
            "--nice",
        ];
        assert_eq!(slurm.options(), expected);
    }

    #[test]
    fn paths_are_quoted_in_the_script() {
        let slurm = Slurm {
            tasks: 2,
            before: vec!["module load cuda".into()],
            ..Slurm::default()
        };
        let script = text(
            &slurm,
            Path::new("a b.toml"),
            Path::new("it's.jsonl"),
            &["--cell-timeout".into(), "60".into()],
            Path::new("/x/advae-host"),
        );
        assert!(script.starts_with("#!/bin/bash\nmodule load cuda\n"), "{script}");
        assert!(
            script.contains("'/x/advae-host' run 'a b.toml' --out 'it'\\''s.jsonl' --shard \"$i/2\""),
            "{script}"
        );
        assert!(script.contains(":-1}\" --cell-timeout 60\ncode=$?"), "{script}");
    }
}

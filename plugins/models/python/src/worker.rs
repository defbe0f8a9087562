//! The Python process, and the conversation with it.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use advae_sdk::candle_core::{Device, Error, Result, Tensor, bail};
use serde_json::{Value, json};

/// What the process runs, which is part of the Python package, too.
const WORKER: &str = include_str!("../../../../python/src/advae/_worker.py");
/// Version of the conversation, as [`WORKER`] has it.
const PROTOCOL: u32 = 1;
/// How long a process that was told to end may take.
const GRACE: Duration = Duration::from_secs(2);

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a process that is started for it, by this interpreter.
    Process(PathBuf),
    /// In a process of the user's that serves it on a socket.
    Socket(PathBuf),
}

/// A model in another process. A process that ended is started again by the next call.
pub struct Worker {
    place: Place,
    /// The request that loads the model.
    load: Value,
    timeout: Duration,
    link: Mutex<Option<Link>>,
    /// What the newest process is called: an earlier one's graphs are gone.
    generation: Mutex<u64>,
    /// Graphs that nobody needs any longer, by generation and number.
    dropped: Mutex<Vec<(u64, u64)>>,
}

/// A live connection.
struct Link {
    stream: BufReader<UnixStream>,
    process: Option<Process>,
    memory: File,
    generation: u64,
}

/// A process of ours.
struct Process {
    child: Child,
    /// The last line that it wrote to standard error.
    last: Arc<Mutex<String>>,
}

/// A graph that the process keeps for a backward pass.
pub struct Kept {
    worker: Arc<Worker>,
    generation: u64,
    number: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        locked(&self.worker.dropped).push((self.generation, self.number));
    }
}

/// One forward pass.
pub struct Run<'a> {
    /// Images `[N, C, H, W]`.
    pub x: &'a Tensor,
    /// Whether a backward pass may follow.
    pub keep: bool,
    /// Seeds of its random numbers, one an image; none where nothing is random.
    pub seeds: &'a [u64],
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Starts the process and loads the model. Gives what the process says of the model, too.
    ///
    /// # Errors
    /// Where the interpreter does not start, the socket is not served, or the model cannot be loaded.
    pub fn start(place: Place, load: Value, timeout: Duration) -> Result<(Arc<Self>, Value)> {
        let worker = Self {
            place,
            load,
            timeout,
            link: Mutex::default(),
            generation: Mutex::default(),
            dropped: Mutex::default(),
        };
        let (link, told) = worker.connect()?;
        *locked(&worker.link) = Some(link);
        Ok((Arc::new(worker), told))
    }

    /// The model's output for images, and what a backward pass goes by where `keep` is asked for.
    ///
    /// # Errors
    /// The model's own, and where the process ended or does not answer.
    pub fn run(self: &Arc<Self>, run: &Run) -> Result<(Tensor, Option<Kept>)> {
        self.with_link(|link| {
            let drop = self.dropped_of(link.generation);
            link.put(run.x)?;
            let reply = link.ask(&json!({
                "op": "run",
                "shape": run.x.dims(),
                "keep": run.keep,
                "seeds": run.seeds,
                "threads": advae_sdk::nn::threads(),
                "drop": drop,
            }))?;
            let kept = reply["kept"].as_u64().map(|number| Kept {
                worker: self.clone(),
                generation: link.generation,
                number,
            });
            Ok((link.take(&reply)?, kept))
        })
    }

    #[cfg(test)]
    pub(crate) fn end(&self) {
        *locked(&self.link) = None;
    }

    /// Graphs of a process that it may forget.
    fn dropped_of(&self, generation: u64) -> Vec<u64> {
        let all = std::mem::take(&mut *locked(&self.dropped));
        let own = all.into_iter().filter(|(of, _)| *of == generation);
        own.map(|(_, number)| number).collect()
    }

    fn connect(&self) -> Result<(Link, Value)> {
        let generation = {
            let mut generation = locked(&self.generation);
            *generation += 1;
            *generation
        };
        let (stream, process) = match &self.place {
            Place::Process(interpreter) => {
                let (stream, process) = spawn(interpreter)?;
                (stream, Some(process))
            }
            Place::Socket(path) => match UnixStream::connect(path) {
                Ok(stream) => (stream, None),
                Err(e) => bail!(
                    "cannot connect to the socket '{}' ({e}): expected one that advae.serve of the Python package listens on",
                    path.display()
                ),
            },
        };
        stream.set_read_timeout(Some(self.timeout)).map_err(Error::wrap)?;
        let memory = tempfile::Builder::new()
            .prefix("advae-")
            .tempfile_in(memory_folder())
            .map_err(Error::wrap)?;
        let (file, path) = memory.into_parts();
        let mut link = Link {
            stream: BufReader::new(stream),
            process,
            memory: file,
            generation,
        };
        let mut load = self.load.clone();
        load["op"] = "load".into();
        load["protocol"] = PROTOCOL.into();
        load["memory"] = path.display().to_string().into();
        let told = match link.ask(&load) {
            Ok(told) => told,
            Err(lost) => return Err(lost.told("it was loaded", self.timeout)),
        };
        // Both sides have it open: its name is of no use any longer.
        drop(path);
        Ok((link, told))
    }

    fn with_link<R>(&self, f: impl FnOnce(&mut Link) -> std::result::Result<R, Lost>) -> Result<R> {
        let mut held = locked(&self.link);
        let mut link = match held.take() {
            Some(link) => link,
            None => self.connect()?.0,
        };
        match f(&mut link) {
            Ok(r) => {
                *held = Some(link);
                Ok(r)
            }
            Err(Lost::Refused(text)) => {
                *held = Some(link);
                Err(Error::msg(text))
            }
            // The link goes, and its process with it.
            Err(lost) => Err(lost.told("it computed", self.timeout)),
        }
    }
}

impl Kept {
    /// The cotangent of the output pulled back to the images.
    ///
    /// # Errors
    /// As for [`Worker::run`], and where the process that had the graph has ended.
    pub fn back(&self, cotangent: &Tensor) -> Result<Tensor> {
        self.worker.with_link(|link| {
            if link.generation != self.generation {
                return Err(Lost::Refused(
                    "the Python process ended after the forward pass, and its graph with it".into(),
                ));
            }
            link.put(cotangent)?;
            let reply = link.ask(&json!({
                "op": "back",
                "kept": self.number,
                "shape": cotangent.dims(),
                "threads": advae_sdk::nn::threads(),
            }))?;
            link.take(&reply)
        })
    }
}

/// Why a request has no answer.
enum Lost {
    /// The model, or what surrounds it, said no; the conversation goes on.
    Refused(String),
    /// Nothing came in time.
    Late,
    /// The process ended; where it was ours: how, and its last line.
    Ended(Option<(String, String)>),
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Lost::Refused(error.to_string())
    }
}

impl Lost {
    fn told(self, when: &str, timeout: Duration) -> Error {
        Error::msg(match self {
            Lost::Refused(text) => text,
            Lost::Late => format!(
                "the Python process gave no answer within {} s while {when} and was ended: expected timeout=SECONDS where it takes longer",
                timeout.as_secs_f64()
            ),
            Lost::Ended(Some((how, last))) => {
                let last = if last.is_empty() {
                    last
                } else {
                    format!(" (its last line: {last})")
                };
                format!("the Python process {how} while {when}{last}")
            }
            Lost::Ended(None) => format!("the process behind the socket went away while {when}"),
        })
    }
}

impl Link {
    /// Lays a tensor where the process reads it.
    fn put(&self, x: &Tensor) -> std::result::Result<(), Lost> {
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let put = self.memory.write_all_at(&bytes, 0);
        put.map_err(|e| {
            Lost::Refused(format!(
                "no memory for {} bytes of images ({e}): choose a smaller batch",
                bytes.len()
            ))
        })
    }

    /// The tensor that a reply speaks of.
    fn take(&self, reply: &Value) -> std::result::Result<Tensor, Lost> {
        let shape: Vec<usize> = serde_json::from_value(reply["shape"].clone()).map_err(Error::wrap)?;
        let mut bytes = vec![0; shape.iter().product::<usize>() * size_of::<f32>()];
        self.memory.read_exact_at(&mut bytes, 0).map_err(Error::wrap)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn ask(&mut self, request: &Value) -> std::result::Result<Value, Lost> {
        let mut line = request.to_string();
        line.push('\n');
        let mut answer = String::new();
        let said = self.stream.get_mut().write_all(line.as_bytes());
        match said.and_then(|()| self.stream.read_line(&mut answer)) {
            Ok(n) if n > 0 => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(Lost::Late),
            _ => return Err(Lost::Ended(self.process.as_mut().map(Process::end))),
        }
        let answer: Value = serde_json::from_str(&answer).map_err(|e| {
            Lost::Refused(format!(
                "the Python process answered with something else than JSON: {e}"
            ))
        })?;
        match answer["error"].as_str() {
            Some(error) => Err(Lost::Refused(error.into())),
            None => Ok(answer),
        }
    }
}

impl Process {
    /// How it ended, and its last line.
    fn end(&mut self) -> (String, String) {
        let how = match self.wait() {
            Some(status) => ended(status),
            None => "closed its connection".into(),
        };
        // What it wrote is read by another thread, which may lag behind.
        std::thread::sleep(Duration::from_millis(50));
        (how, locked(&self.last).clone())
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < GRACE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
        None
    }
}

fn ended(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("ended with exit code {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL, which is also what a lack of memory ends in)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    };
    format!("was ended by signal {signal}{name}")
}

impl Drop for Link {
    fn drop(&mut self) {
        // It ends when nobody speaks to it; one that computes on is not waited for.
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
        if let Some(process) = &mut self.process
            && process.wait().is_none()
        {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn spawn(interpreter: &Path) -> Result<(UnixStream, Process)> {
    let (own, other) = UnixStream::pair().map_err(Error::wrap)?;
    let child = Command::new(interpreter)
        .args(["-u", "-c", WORKER])
        .stdin(Stdio::from(OwnedFd::from(other)))
        // What the model prints goes the way of its errors.
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => bail!(
            "cannot start '{}' ({e}): expected a Python of version 3.9 or newer, python=PATH",
            interpreter.display()
        ),
    };
    let last = Arc::default();
    if let Some(stderr) = child.stderr.take() {
        let last = Arc::clone(&last);
        std::thread::spawn(move || pass_on(stderr, &last));
    }
    Ok((own, Process { child, last }))
}

/// Shows what a process writes as it comes, and remembers its last line.
fn pass_on(stderr: ChildStderr, last: &Mutex<String>) {
    let mut lines = BufReader::new(stderr);
    let mut line = vec![];
    // A line without an end is passed on in parts.
    while matches!(lines.by_ref().take(4096).read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let _ = std::io::stderr().write_all(&line);
        let text = String::from_utf8_lossy(&line);
        if !text.trim().is_empty() {
            *locked(last) = text.trim().chars().take(200).collect();
        }
        line.clear();
    }
}

/// Where files in memory lie.
fn memory_folder() -> PathBuf {
    let shared = Path::new("/dev/shm");
    match shared.is_dir() {
        true => shared.into(),
        false => std::env::temp_dir(),
    }
}

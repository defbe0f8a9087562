//! A network on a GPU as one differentiable operator of candle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{ThreadId, current};

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::super::graph::Graph;
use super::device::{Precision, address};
use super::machine::{Machine, Workspace};
use super::program::{Order, Program};

/// What is compiled for each precision.
#[derive(Default)]
pub struct Slot([Mutex<Option<Arc<Ready>>>; 2]);

/// A machine for the weights of some version, and what calls leave for later ones.
struct Ready {
    machine: Machine,
    version: Mutex<u64>,
    /// And the thread whose stream each was last used by.
    spare: Mutex<Vec<(ThreadId, Workspace)>>,
}

/// Workspaces that are kept for later calls. Sizes of batches recur: an attack's shrink as images are broken.
const KEPT: usize = 24;

/// Workspaces have one of sixteen sizes between a power of two and the next.
fn rounded(images: usize) -> usize {
    let below = (images + 1).next_power_of_two() / 2;
    images.next_multiple_of((below / 16).max(1))
}

impl Slot {
    /// The machine for the graph's present weights.
    fn ready(
        &self,
        graph: &Graph,
        output: usize,
        version: u64,
        device: &Device,
        precision: Precision,
    ) -> Result<Arc<Ready>> {
        let Device::Cuda(cuda) = device else {
            bail!("a network for a GPU was asked for on another device")
        };
        let mut slot = lock(&self.0[usize::from(precision == Precision::Tf32)]);
        if let Some(ready) = &*slot {
            let mut of = lock(&ready.version);
            if *of != version {
                ready.machine.refresh()?;
                *of = version;
            }
            return Ok(ready.clone());
        }
        let order = match precision {
            Precision::Single => Order::Planes,
            Precision::Tf32 => Order::ChannelsLast,
        };
        let ready = Arc::new(Ready {
            machine: Machine::new(Program::new(graph, output, order)?, cuda, precision)?,
            version: Mutex::new(version),
            spare: Mutex::default(),
        });
        *slot = Some(ready.clone());
        Ok(ready)
    }
}

impl Ready {
    /// A workspace for so many images, or for fewer where memory does not suffice.
    fn work(&self, images: usize) -> Result<Workspace> {
        let mut images = rounded(images);
        if let Some(work) = self.spare(images)? {
            return Ok(work);
        }
        images = images.min(self.machine.room());
        loop {
            if let Some(work) = self.spare(images)? {
                return Ok(work);
            }
            match self.machine.workspace(images) {
                Ok(work) => return Ok(work),
                Err(error) if !error.to_string().contains("OUT_OF_MEMORY") => return Err(error),
                // What others left may be in the way.
                Err(_) if !lock(&self.spare).is_empty() => lock(&self.spare).clear(),
                Err(error) if images == 1 => return Err(error),
                Err(_) => images /= 2,
            }
        }
    }

    fn spare(&self, images: usize) -> Result<Option<Workspace>> {
        let mut spare = lock(&self.spare);
        let Some(i) = spare.iter().position(|(_, work)| work.images() == images) else {
            return Ok(None);
        };
        let (thread, work) = spare.remove(i);
        if thread != current().id() {
            self.machine.wait()?;
        }
        Ok(Some(work))
    }

    fn give_back(&self, work: Workspace) {
        let mut spare = lock(&self.spare);
        spare.push((current().id(), work));
        if spare.len() > KEPT {
            spare.remove(0);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Outputs for images `x` `[N, C, H, W]` on a GPU; `version` is that of the weights.
pub fn forward(slot: &Slot, (graph, output): (&Graph, usize), version: u64, x: &Tensor, tf32: bool) -> Result<Tensor> {
    let precision = if tf32 { Precision::Tf32 } else { Precision::Single };
    let ready = slot.ready(graph, output, version, x.device(), precision)?;
    let x = x.contiguous()?;
    let op = NetOp {
        ready,
        taped: x.track_op(),
        tape: Mutex::default(),
    };
    x.apply_op1(op)
}

/// What each launch of a pass of so many images takes, in milliseconds.
pub fn profile(
    slot: &Slot,
    (graph, output): (&Graph, usize),
    version: u64,
    device: &Device,
    tf32: bool,
    images: usize,
) -> Result<Vec<(String, f32)>> {
    let precision = if tf32 { Precision::Tf32 } else { Precision::Single };
    let ready = slot.ready(graph, output, version, device, precision)?;
    let work = ready.work(images)?;
    let rows = ready.machine.profile(&work);
    ready.give_back(work);
    rows
}

/// One pass over a batch.
struct NetOp {
    ready: Arc<Ready>,
    /// Whether a way back will be asked for.
    taped: bool,
    /// Parts of the batch: images, and where the way back finds what it needs.
    tape: Mutex<Vec<(usize, Workspace)>>,
}

impl NetOp {
    /// Numbers an image of inputs and outputs.
    fn sizes(&self) -> [usize; 2] {
        let program = &self.ready.machine.program;
        [program.images, program.outputs].map(|buffer| program.buffers[buffer].bytes() / size_of::<f32>())
    }

    fn run(&self, n: usize, x: u64, y: u64) -> Result<()> {
        let [x_len, y_len] = self.sizes().map(|len| (len * size_of::<f32>()) as u64);
        let machine = &self.ready.machine;
        let mut tape = vec![];
        let mut done = 0;
        while done < n {
            let work = self.ready.work(n - done)?;
            let images = work.images().min(n - done);
            machine.forward(&work, images, x + done as u64 * x_len, y + done as u64 * y_len)?;
            match self.taped {
                true => tape.push((images, work)),
                false => self.ready.give_back(work),
            }
            done += images;
        }
        *lock(&self.tape) = tape;
        Ok(())
    }
}

impl Drop for NetOp {
    fn drop(&mut self) {
        for (_, work) in std::mem::take(&mut *lock(&self.tape)) {
            self.ready.give_back(work);
        }
    }
}

impl CustomOp1 for NetOp {
    fn name(&self) -> &'static str {
        "net"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a network for a GPU was given images that are not there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let n = layout.dims()[0];
        let device = storage.device.clone();
        let stream = device.cuda_stream();
        // SAFETY: every element is written before any is read.
        let y = unsafe { device.alloc::<f32>(n * self.sizes()[1]) }?;
        let to = y.device_ptr(&stream).0;
        self.run(n, address(storage, layout.start_offset(), &stream)?, to)?;
        let shape = self.ready.machine.program.output.batch(n);
        Ok((CudaStorage::wrap_cuda_slice(y, device), shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (storage, layout) = dy.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a gradient for a network on a GPU is not there")
        };
        let device = storage.device.clone();
        let stream = device.cuda_stream();
        // SAFETY: as above.
        let dx = unsafe { device.alloc::<f32>(x.elem_count()) }?;
        let [mut to, mut from] = [
            dx.device_ptr(&stream).0,
            address(storage, layout.start_offset(), &stream)?,
        ];
        let [x_len, y_len] = self.sizes().map(|len| (len * size_of::<f32>()) as u64);
        for (images, work) in lock(&self.tape).iter() {
            self.ready.machine.backward(work, *images, from, to)?;
            (to, from) = (to + *images as u64 * x_len, from + *images as u64 * y_len);
        }
        let dx = Storage::Cuda(CudaStorage::wrap_cuda_slice(dx, device));
        let none = candle_core::op::BackpropOp::none();
        Ok(Some(Tensor::from_storage(dx, x.shape(), none, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn sizes_of_batches_are_rounded_by_a_sixteenth_at_most() {
        assert_eq!(
            [1, 7, 16, 17, 31, 32, 33, 500, 512, 513].map(rounded),
            [1, 7, 16, 17, 31, 32, 34, 512, 512, 544]
        );
        assert!((1..5000).all(|n| rounded(n) >= n && rounded(n) - n <= n / 16));
    }
}

//! A program on a GPU: cuDNN's convolutions, cuBLAS's products and kernels of our own between them, in buffers that stay. The way forward
//! and the way back are each recorded once as a CUDA graph and replayed: what a launch costs the processor is paid once a pass.
//!
//! All work is ordered by the calling thread's default stream, as candle's is: no call waits for the GPU.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{self, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda_backend::cudarc::{cudnn, nvrtc};
use candle_core::{Device, Result, Storage, Tensor};

use super::blas::Blas;
use super::device::{Precision, address, failed, pointer};
use super::dnn::{Algorithm, Dnn, Shapes};
use super::program::{Argument, Launch, Program};

/// Bytes that an algorithm for a convolution may use beside its maps.
const SCRATCH: usize = 2 << 30;

/// Threads of a block, and blocks at most: a GPU's processors several times over.
const THREADS: u32 = 256;
const BLOCKS: u32 = 132 * 16;

/// Buffers begin at multiples of so many bytes.
const ALIGNED: usize = 256;

/// A compiled program with its constants.
pub struct Machine {
    pub program: Program,
    device: CudaDevice,
    stream: Arc<CudaStream>,
    kernels: Vec<CudaFunction>,
    constants: CudaSlice<f32>,
    /// Where each constant begins.
    places: Vec<usize>,
    dnn: Dnn,
    blas: Blas,
    precision: Precision,
    /// Bytes an image takes.
    bytes: usize,
    /// The algorithm of each convolution, and of its transpose, once it is known: for every [class](class) of batches.
    algorithms: Mutex<Vec<Algorithms>>,
}

/// Those of one class of batches.
type Algorithms = Vec<[Option<Algorithm>; 2]>;

/// Batches for which one choice of algorithms is good: up to 64 images, twice as many, and so on.
fn class(images: usize) -> usize {
    images.div_ceil(64).next_power_of_two().ilog2() as usize
}

/// Buffers for some images, and the graphs that were recorded over them.
pub struct Workspace {
    images: usize,
    /// What the buffers lie in.
    _arena: CudaSlice<u8>,
    /// Address of each buffer.
    places: Vec<u64>,
    scratch: CudaSlice<u8>,
    shapes: Vec<Shapes>,
    graphs: [Option<CudaGraph>; 2],
}

// SAFETY: a workspace is used by one caller at a time, and a graph is launched into the stream of whoever calls.
unsafe impl Send for Workspace {}

impl Machine {
    /// Compiles a program's kernels for a device and takes its constants there.
    ///
    /// # Errors
    /// Where one of CUDA's libraries fails.
    pub fn new(program: Program, device: &CudaDevice, precision: Precision) -> Result<Machine> {
        let stream = device.cuda_stream();
        let driver = failed("CUDA");
        stream.context().bind_to_thread().map_err(|e| driver(&e))?;
        keep_memory(&stream)?;
        let kernels = compile(&program, &stream)?;
        let values = program.constants(&Device::Cuda(device.clone()))?;
        let mut places = vec![];
        let mut len = 0;
        for value in &values {
            places.push(len);
            len += value.elem_count().next_multiple_of(ALIGNED / size_of::<f32>());
        }
        let constants = stream.alloc_zeros::<f32>(len.max(1)).map_err(|e| driver(&e))?;
        let dnn = Dnn(cudnn::result::create_handle().map_err(|e| failed("cuDNN")(&e))?);
        // SAFETY: handle and stream are alive.
        unsafe { cudnn::result::set_stream(dnn.0, stream.cu_stream().cast()) }.map_err(|e| failed("cuDNN")(&e))?;
        let machine = Machine {
            algorithms: Mutex::default(),
            blas: Blas::new(&stream, precision)?,
            bytes: program.bytes(),
            program,
            device: device.clone(),
            stream,
            kernels,
            constants,
            places,
            dnn,
            precision,
        };
        machine.fill(&values)?;
        Ok(machine)
    }

    /// Takes in the constants as they are now. Graphs stay as they are.
    ///
    /// # Errors
    /// Where an operation fails.
    pub fn refresh(&self) -> Result<()> {
        self.fill(&self.program.constants(&Device::Cuda(self.device.clone()))?)
    }

    fn fill(&self, values: &[Tensor]) -> Result<()> {
        let base = self.constants.device_ptr(&self.stream).0;
        for (value, place) in values.iter().zip(&self.places) {
            let (storage, layout) = value.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                candle_core::bail!("a constant is not on the GPU")
            };
            let to = base + (place * size_of::<f32>()) as u64;
            let from = address(storage, layout.start_offset(), &self.stream)?;
            self.copy(to, from, value.elem_count())?;
        }
        // Other threads may be the next to use them.
        self.stream.synchronize().map_err(|e| failed("CUDA")(&e))
    }

    /// Copies numbers from one place on the device to another.
    ///
    /// # Errors
    /// Where the driver fails.
    pub fn copy(&self, to: u64, from: u64, numbers: usize) -> Result<()> {
        let bytes = numbers * size_of::<f32>();
        // SAFETY: callers give places of that many numbers that are alive.
        unsafe { driver::result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|e| failed("CUDA")(&e))
    }

    /// Waits for the device: for what another thread has enqueued.
    ///
    /// # Errors
    /// Where the driver fails.
    pub fn wait(&self) -> Result<()> {
        self.stream.context().synchronize().map_err(|e| failed("CUDA")(&e))
    }

    /// Images that fit into the free memory together.
    pub fn room(&self) -> usize {
        let free = self.stream.context().mem_get_info().map_or(0, |(free, _)| free);
        room(self.bytes, (free + spare_memory(&self.stream)).saturating_sub(SCRATCH))
    }

    /// Buffers for some images, with graphs over them.
    ///
    /// # Errors
    /// Where memory does not suffice, or a library has no algorithm.
    pub fn workspace(&self, images: usize) -> Result<Workspace> {
        let driver = failed("CUDA");
        let (places, len) = self.program.places(images);
        let arena = self.stream.alloc_zeros::<u8>(len).map_err(|e| driver(&e))?;
        let base = arena.device_ptr(&self.stream).0;
        let places = places.into_iter().map(|place| base + place as u64).collect();
        let shapes = |conv| Shapes::new(conv, images, self.program.order, self.precision);
        let mut work = Workspace {
            images,
            places,
            _arena: arena,
            scratch: self.stream.alloc_zeros::<u8>(1).map_err(|e| driver(&e))?,
            shapes: self.program.convs.iter().map(shapes).collect::<Result<_>>()?,
            graphs: [None, None],
        };
        self.choose(&mut work)?;
        for (way, launches) in [&self.program.forward, &self.program.backward].into_iter().enumerate() {
            // Once as it is: libraries load their kernels at the first call, which no graph records.
            self.launch_all(&work, launches)?;
            work.graphs[way] = self.record(&work, launches)?;
        }
        Ok(work)
    }

    fn record(&self, work: &Workspace, launches: &[Launch]) -> Result<Option<CudaGraph>> {
        use driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
        let error = failed("a CUDA graph");
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| error(&e))?;
        let launched = self.launch_all(work, launches);
        // SAFETY: 0 is no flag, which the driver takes.
        let none = unsafe { std::mem::transmute::<u32, CUgraphInstantiate_flags>(0) };
        let graph = self.stream.end_capture(none).map_err(|e| error(&e));
        launched?;
        let graph = graph?;
        if let Some(graph) = &graph {
            // Now, while it can be answered with fewer images, memory is taken for it.
            graph.upload().map_err(|e| error(&e))?;
        }
        Ok(graph)
    }

    /// Outputs for `n` images from one place to another. What the way back needs stays in the workspace.
    ///
    /// # Errors
    /// Where a library fails.
    pub fn forward(&self, work: &Workspace, n: usize, x: u64, y: u64) -> Result<()> {
        self.way(work, 0, n, [(self.program.images, x), (self.program.outputs, y)])
    }

    /// Gradients at the images of the last way forward, from those at the outputs.
    ///
    /// # Errors
    /// Where a library fails.
    pub fn backward(&self, work: &Workspace, n: usize, dy: u64, dx: u64) -> Result<()> {
        self.way(
            work,
            1,
            n,
            [(self.program.output_slope, dy), (self.program.image_slope, dx)],
        )
    }

    fn way(&self, work: &Workspace, way: usize, n: usize, [(from, x), (to, y)]: [(usize, u64); 2]) -> Result<()> {
        let numbers = |buffer: usize| self.program.buffers[buffer].bytes() / size_of::<f32>() * n;
        self.copy(work.places[from], x, numbers(from))?;
        match &work.graphs[way] {
            Some(graph) => graph.launch().map_err(|e| failed("a CUDA graph")(&e))?,
            None if way == 0 => self.launch_all(work, &self.program.forward)?,
            None => self.launch_all(work, &self.program.backward)?,
        }
        self.copy(y, work.places[to], numbers(to))
    }

    fn launch_all(&self, work: &Workspace, launches: &[Launch]) -> Result<()> {
        launches.iter().try_for_each(|launch| self.launch(work, launch))
    }

    fn launch(&self, work: &Workspace, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel {
                number,
                elements,
                arguments,
                ..
            } => self.launch_kernel(work, &self.kernels[*number], *elements, arguments),
            Launch::Product {
                weight,
                inputs,
                outputs,
                from,
                to,
                transposed,
                add,
            } => {
                let sizes = [*inputs, *outputs, work.images];
                let places = [self.constant(*weight), work.places[*from], work.places[*to]];
                self.blas.product(sizes, places, *transposed, *add)
            }
            Launch::Conv {
                conv,
                from,
                to,
                transposed,
                add,
            } => self.convolve(work, *conv, [work.places[*from], work.places[*to]], *transposed, *add),
        }
    }

    fn launch_kernel(
        &self,
        work: &Workspace,
        kernel: &CudaFunction,
        elements: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let mut places: Vec<u64> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Buffer(i) => work.places[*i],
                Argument::Constant(i) => self.constant(*i),
            })
            .collect();
        let mut total = (elements * work.images) as u32;
        let mut parameters: Vec<*mut c_void> = places.iter_mut().map(|p| (&raw mut *p).cast()).collect();
        parameters.push((&raw mut total).cast());
        let blocks = total.div_ceil(THREADS).clamp(1, BLOCKS);
        // SAFETY: the kernel takes these addresses, of buffers as large as it was compiled for, and a number of elements.
        unsafe {
            let (grid, block) = ((blocks, 1, 1), (THREADS, 1, 1));
            driver::result::launch_kernel(
                kernel.cu_function(),
                grid,
                block,
                0,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|e| failed("a kernel")(&e))
    }

    fn constant(&self, i: usize) -> u64 {
        self.constants.device_ptr(&self.stream).0 + (self.places[i] * size_of::<f32>()) as u64
    }

    fn convolve(&self, work: &Workspace, conv: usize, [from, to]: [u64; 2], transposed: bool, add: bool) -> Result<()> {
        let (one, beta) = (1f32, if add { 1f32 } else { 0. });
        let [alpha, beta] = [&raw const one, &raw const beta].map(<*const f32>::cast::<c_void>);
        let shapes = &work.shapes[conv];
        let w = pointer(self.constant(self.program.convs[conv].weight));
        let (from, to) = (pointer(from), pointer(to));
        let (scratch, size) = (pointer(work.scratch.device_ptr(&self.stream).0), work.scratch.len());
        let algorithm = self.algorithm(work, conv, transposed, |known| *known);
        // SAFETY: descriptors are alive and describe the buffers; the scratch memory is as large as the algorithms ask for.
        let done = unsafe {
            match algorithm {
                Some(Algorithm::Forward(algorithm)) => cudnn::result::convolution_forward(
                    self.dnn.0,
                    alpha,
                    shapes.x,
                    from,
                    shapes.w,
                    w,
                    shapes.conv,
                    algorithm,
                    scratch,
                    size,
                    beta,
                    shapes.y,
                    to,
                ),
                Some(Algorithm::Backward(algorithm)) => cudnn::result::convolution_backward_data(
                    self.dnn.0,
                    alpha,
                    shapes.w,
                    w,
                    shapes.y,
                    from,
                    shapes.conv,
                    algorithm,
                    scratch,
                    size,
                    beta,
                    shapes.x,
                    to,
                ),
                None => candle_core::bail!("no algorithm was chosen for a convolution"),
            }
        };
        done.map_err(|e| failed("cuDNN")(&e))
    }

    /// The algorithms for a workspace, for one convolution or its transpose: read, or chosen by `f`.
    fn algorithm<R>(
        &self,
        work: &Workspace,
        conv: usize,
        transposed: bool,
        f: impl FnOnce(&mut Option<Algorithm>) -> R,
    ) -> R {
        let mut all = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        let class = class(work.images);
        while all.len() <= class {
            all.push(vec![[None; 2]; self.program.convs.len()]);
        }
        f(&mut all[class][conv][usize::from(transposed)])
    }

    /// Chooses an algorithm for every convolution that has none, and makes room for what they use.
    ///
    /// All are timed twice, on the first buffers of a class of batches; of those that give the same results every time the first is taken that is
    /// not a tenth slower than the fastest, so that a second run chooses alike.
    fn choose(&self, work: &mut Workspace) -> Result<()> {
        let error = failed("cuDNN");
        let mut trial = None;
        let mut most = 1;
        for launch in self.program.forward.iter().chain(&self.program.backward) {
            let Launch::Conv {
                conv,
                from,
                to,
                transposed,
                ..
            } = launch
            else {
                continue;
            };
            let mut chosen = self.algorithm(work, *conv, *transposed, |known| *known);
            let shapes = &work.shapes[*conv];
            if chosen.is_none() {
                let trial = match &mut trial {
                    Some(trial) => trial,
                    none => none.insert(self.stream.alloc_zeros::<u8>(SCRATCH).map_err(|e| failed("CUDA")(&e))?),
                };
                let w = pointer(self.constant(self.program.convs[*conv].weight));
                let places = [w, pointer(work.places[*from]), pointer(work.places[*to])];
                let scratch = (pointer(trial.device_ptr(&self.stream).0), trial.len());
                let find = || match transposed {
                    false => shapes.fastest_forward(&self.dnn, places, scratch),
                    true => shapes.fastest_backward(self.precision == Precision::Tf32, &self.dnn, places, scratch),
                };
                // The first time libraries load their kernels, and time that, too.
                find()?;
                chosen = Some(find()?);
                self.algorithm(work, *conv, *transposed, |known| *known = chosen);
            }
            // SAFETY: handle and descriptors are alive.
            let size = unsafe {
                match chosen {
                    Some(Algorithm::Forward(algorithm)) => cudnn::result::get_convolution_forward_workspace_size(
                        self.dnn.0,
                        shapes.x,
                        shapes.w,
                        shapes.conv,
                        shapes.y,
                        algorithm,
                    ),
                    Some(Algorithm::Backward(algorithm)) => {
                        cudnn::result::get_convolution_backward_data_workspace_size(
                            self.dnn.0,
                            shapes.w,
                            shapes.y,
                            shapes.conv,
                            shapes.x,
                            algorithm,
                        )
                    }
                    None => Ok(0),
                }
            };
            most = most.max(size.map_err(|e| error(&e))?);
        }
        work.scratch = self.stream.alloc_zeros::<u8>(most).map_err(|e| failed("CUDA")(&e))?;
        Ok(())
    }

    /// What each launch of a pass takes, in milliseconds: its name, and the median of several.
    ///
    /// # Errors
    /// Where a library fails.
    pub fn profile(&self, work: &Workspace) -> Result<Vec<(String, f32)>> {
        use driver::sys::CUevent_flags;
        let error = failed("CUDA");
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let mut rows = vec![];
        for (way, launches) in [("", &self.program.forward), ("back: ", &self.program.backward)] {
            for launch in launches {
                let mut times = vec![];
                for _ in 0..5 {
                    let start = self.stream.record_event(flags).map_err(|e| error(&e))?;
                    self.launch(work, launch)?;
                    let end = self.stream.record_event(flags).map_err(|e| error(&e))?;
                    times.push(start.elapsed_ms(&end).map_err(|e| error(&e))?);
                }
                times.sort_by(f32::total_cmp);
                rows.push((format!("{way}{}", self.name(work, launch)), times[times.len() / 2]));
            }
        }
        Ok(rows)
    }

    fn name(&self, work: &Workspace, launch: &Launch) -> String {
        match launch {
            Launch::Kernel { name, elements, .. } => format!("{name} of {elements}"),
            Launch::Product { inputs, outputs, .. } => format!("product of {inputs} and {outputs}"),
            Launch::Conv { conv, transposed, .. } => {
                let g = self.program.convs[*conv].geometry;
                let algorithm = match self.algorithm(work, *conv, *transposed, |known| *known) {
                    Some(Algorithm::Forward(algorithm)) => algorithm as u32,
                    Some(Algorithm::Backward(algorithm)) => algorithm as u32,
                    None => 0,
                };
                let what = if *transposed {
                    "transposed convolution"
                } else {
                    "convolution"
                };
                format!(
                    "{what} {}x{} of {:?} and {:?}, algorithm {algorithm}",
                    g.kh,
                    g.kw,
                    g.input(),
                    g.output()
                )
            }
        }
    }
}

/// The pool that candle's tensors and buffers here are taken from.
fn pool(stream: &CudaStream) -> std::result::Result<driver::sys::CUmemoryPool, driver::DriverError> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is that of a live context.
    unsafe { driver::sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()).result()? };
    Ok(pool)
}

/// Has the pool keep what is freed: by default all of it goes back to the system whenever somebody waits for the GPU, and allocating then
/// takes milliseconds.
fn keep_memory(stream: &CudaStream) -> Result<()> {
    let error = failed("CUDA");
    let pool = pool(stream).map_err(|e| error(&e))?;
    let mut all = u64::MAX;
    let attribute = driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own, and the attribute takes a number of 64 bits.
    unsafe { driver::sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast()).result() }
        .map_err(|e| error(&e))
}

/// Bytes that the pool keeps and nobody uses.
fn spare_memory(stream: &CudaStream) -> usize {
    use driver::sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};
    let ask = |attribute| {
        let mut bytes = 0u64;
        let pool = pool(stream).ok()?;
        // SAFETY: as above; both attributes are numbers of 64 bits.
        unsafe { driver::sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result() }.ok()?;
        Some(bytes as usize)
    };
    let [reserved, used] = [CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT].map(ask);
    reserved.unwrap_or(0).saturating_sub(used.unwrap_or(0))
}

/// Images of so many bytes that fit into free memory, of which a fifth is left to others: at least one.
pub fn room(bytes: usize, free: usize) -> usize {
    (free / 5 * 4 / bytes.max(1)).max(1)
}

impl Workspace {
    /// Images it has room for.
    pub fn images(&self) -> usize {
        self.images
    }
}

/// A program's kernels, compiled for the device.
fn compile(program: &Program, stream: &Arc<CudaStream>) -> Result<Vec<CudaFunction>> {
    if program.kernels() == 0 {
        return Ok(vec![]);
    }
    let context = stream.context();
    let error = failed("CUDA");
    let (major, minor) = context.compute_capability().map_err(|e| error(&e))?;
    let options = nvrtc::CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{major}{minor}")],
        ..Default::default()
    };
    let ptx = nvrtc::compile_ptx_with_opts(program.source(), options).map_err(|e| failed("NVRTC")(&e))?;
    let module = context.load_module(ptx).map_err(|e| error(&e))?;
    (0..program.kernels())
        .map(|k| module.load_function(&format!("k{k}")).map_err(|e| error(&e)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_of_like_sizes_have_one_choice() {
        assert_eq!(
            [1, 64, 65, 128, 129, 500, 512, 513, 10_000].map(class),
            [0, 0, 1, 1, 2, 3, 3, 4, 8]
        );
    }

    #[test]
    fn as_many_images_go_at_once_as_memory_holds() {
        assert_eq!(room(1 << 20, 10 << 30), 8192);
        assert_eq!(room(1 << 20, 0), 1);
    }
}

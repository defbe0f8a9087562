//! The lowering on the processor: its kernels, compiled by the C compiler, between convolutions by their definition, against networks as
//! the processor runs them. Without a GPU this is all but the library calls.
#![allow(clippy::unwrap_used)]

use std::ffi::c_void;
use std::process::Command;

use candle_core::{Device, Tensor, Var};

use super::program::{Argument, Buffer, Launch, Order, Program};
use crate::kernels::geometry::Geometry;
use crate::net::{NetBuilder, Node};
use crate::{BatchNorm2d, Conv2d, ConvTranspose2d, Init, Linear, Padding, Pass, Weights};

/// Runs a program for some images.
struct Host {
    program: Program,
    constants: Vec<Vec<f32>>,
    library: libloading::Library,
    /// Room for all buffers, and where each begins in it.
    arena: Vec<u64>,
    places: Vec<usize>,
    images: usize,
    _folder: Folder,
}

struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Host {
    fn new(program: Program, images: usize, name: &str) -> Host {
        let folder = std::env::temp_dir().join(format!(
            "advae-lowering-{}-{name}-{:?}",
            std::process::id(),
            program.order
        ));
        std::fs::create_dir_all(&folder).unwrap();
        let (source, library) = (folder.join("kernels.c"), folder.join("kernels.so"));
        std::fs::write(&source, program.host_source()).unwrap();
        let compiler = std::env::var("CC").unwrap_or("cc".into());
        let done = Command::new(compiler)
            .args([
                "-O1",
                "-Wall",
                "-Werror",
                "-Wno-unused-function",
                "-shared",
                "-fPIC",
                "-o",
            ])
            .args([&library, &source])
            .arg("-lm")
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let constants = program.constants(&Device::Cpu).unwrap();
        let (places, bytes) = program.places(images);
        Host {
            arena: vec![u64::MAX; bytes.div_ceil(8)],
            places,
            constants: constants.iter().map(|c| c.to_vec1().unwrap()).collect(),
            // SAFETY: the library was just compiled from kernels without constructors.
            library: unsafe { libloading::Library::new(&library) }.unwrap(),
            program,
            images,
            _folder: Folder(folder),
        }
    }

    fn floats(&self, buffer: usize) -> Vec<f32> {
        let Buffer::Floats(len) = self.program.buffers[buffer] else {
            panic!()
        };
        // SAFETY: the buffer lies in the arena.
        let data = unsafe { self.arena.as_ptr().cast::<u8>().add(self.places[buffer]) }.cast::<f32>();
        // SAFETY: the buffer was made for that many numbers.
        unsafe { std::slice::from_raw_parts(data, self.images * len) }.to_vec()
    }

    fn set(&mut self, buffer: usize, values: &[f32]) {
        // SAFETY: as above.
        let data = unsafe { self.arena.as_mut_ptr().cast::<u8>().add(self.places[buffer]) }.cast::<f32>();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(data, values.len()) }.copy_from_slice(values);
    }

    fn run(&mut self, backward: bool) {
        let launches = std::mem::take(match backward {
            true => &mut self.program.backward,
            false => &mut self.program.forward,
        });
        launches.iter().for_each(|launch| self.launch(launch));
        *(match backward {
            true => &mut self.program.backward,
            false => &mut self.program.forward,
        }) = launches;
    }

    fn launch(&mut self, launch: &Launch) {
        match launch {
            Launch::Kernel {
                number,
                elements,
                arguments,
                ..
            } => {
                let mut pointers: Vec<*mut c_void> = arguments
                    .iter()
                    .map(|argument| match argument {
                        Argument::Buffer(i) => self
                            .arena
                            .as_mut_ptr()
                            .cast::<u8>()
                            .wrapping_add(self.places[*i])
                            .cast(),
                        Argument::Constant(i) => self.constants[*i].as_mut_ptr().cast(),
                    })
                    .collect();
                let name = format!("k{number}");
                // SAFETY: every kernel has this signature on the host, and buffers hold what it touches.
                unsafe {
                    let kernel: libloading::Symbol<unsafe extern "C" fn(*mut *mut c_void, u32)> =
                        self.library.get(name.as_bytes()).unwrap();
                    kernel(pointers.as_mut_ptr(), (self.images * elements) as u32);
                }
            }
            Launch::Product {
                weight,
                inputs,
                outputs,
                from,
                to,
                transposed,
                add,
            } => {
                let (x, w) = (self.floats(*from), &self.constants[*weight]);
                let (inner, outer) = if *transposed {
                    (*outputs, *inputs)
                } else {
                    (*inputs, *outputs)
                };
                let mut y = if *add {
                    self.floats(*to)
                } else {
                    vec![0.; self.images * outer]
                };
                for n in 0..self.images {
                    for o in 0..outer {
                        let w = |i: usize| {
                            if *transposed {
                                w[i * inputs + o]
                            } else {
                                w[o * inputs + i]
                            }
                        };
                        y[n * outer + o] += (0..inner).map(|i| x[n * inner + i] * w(i)).sum::<f32>();
                    }
                }
                self.set(*to, &y);
            }
            Launch::Conv {
                conv,
                from,
                to,
                transposed,
                add,
            } => {
                let conv = self.program.convs[*conv];
                let g = conv.geometry;
                let (x, w) = (self.floats(*from), &self.constants[conv.weight]);
                let shape = if *transposed { g.input() } else { g.output() };
                let mut y = match add {
                    true => self.floats(*to),
                    false => vec![0.; self.images * shape.iter().product::<usize>()],
                };
                let last = self.program.order == Order::ChannelsLast;
                let at = |[c_, h, w]: [usize; 3], n: usize, c: usize, y: usize, x: usize| match last {
                    true => ((n * h + y) * w + x) * c_ + c,
                    false => ((n * c_ + c) * h + y) * w + x,
                };
                let weight = |g: &Geometry, o: usize, i: usize, r: usize, s: usize| match last {
                    true => ((o * g.kh + r) * g.kw + s) * g.c_in + i,
                    false => ((o * g.c_in + i) * g.kh + r) * g.kw + s,
                };
                for n in 0..self.images {
                    for o in 0..g.c_out {
                        for (p, q) in (0..g.h_out).flat_map(|p| (0..g.w_out).map(move |q| (p, q))) {
                            for i in 0..g.c_in {
                                for (r, s) in (0..g.kh).flat_map(|r| (0..g.kw).map(move |s| (r, s))) {
                                    let (a, b) = (p * g.stride + r, q * g.stride + s);
                                    let inside = a >= g.top && b >= g.left && a - g.top < g.h && b - g.left < g.w;
                                    if !inside {
                                        continue;
                                    }
                                    let input = at(g.input(), n, i, a - g.top, b - g.left);
                                    let output = at(g.output(), n, o, p, q);
                                    let w = w[weight(&g, o, i, r, s)];
                                    match transposed {
                                        false => y[output] += w * x[input],
                                        true => y[input] += w * x[output],
                                    }
                                }
                            }
                        }
                    }
                }
                self.set(*to, &y);
            }
        }
    }
}

/// Numbers between -1 and 1.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1f32..1.)).collect()
}

/// Compares outputs and gradients of a network in both orders of memory with the processor's.
fn check(name: &str, shape: [usize; 3], build: impl Fn(&Weights, &mut NetBuilder) -> Node) {
    let [c, h, w] = shape;
    let mut builder = NetBuilder::new(shape);
    let node = build(&Weights::init(3), &mut builder);
    let net = builder.build(node).unwrap();
    for param in net_params(&builder, node) {
        // Statistics and biases that are neither 0 nor 1.
        let values = numbers(param.var().elem_count(), 5);
        let values: Vec<f32> = match param.name().contains("var") {
            true => values.iter().map(|v| v + 1.5).collect(),
            false => values.iter().map(|v| v * 0.5).collect(),
        };
        param
            .set(&Tensor::from_vec(values, param.var().shape(), &Device::Cpu).unwrap())
            .unwrap();
    }
    let images = 3;
    let x = numbers(images * c * h * w, 1);
    let leaf = Var::from_tensor(&Tensor::from_vec(x.clone(), (images, c, h, w), &Device::Cpu).unwrap()).unwrap();
    let y = net.forward(&Pass::eval(), &leaf).unwrap();
    let expected: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
    for order in [Order::Planes, Order::ChannelsLast] {
        let (graph, output) = builder.graph(node);
        let mut host = Host::new(Program::new(&graph, output, order).unwrap(), images, name);
        host.set(host.program.images, &x);
        host.run(false);
        close(
            &format!("{name}, {order:?}"),
            &host.floats(host.program.outputs),
            &expected,
        );
        // The way back may be gone again, with another cotangent.
        for seed in [7, 8] {
            let dy = numbers(expected.len(), seed);
            let cotangent = Tensor::from_vec(dy.clone(), y.shape(), &Device::Cpu).unwrap();
            let dx = crate::vjp(leaf.as_tensor(), &y, &cotangent).unwrap().0.unwrap();
            host.set(host.program.output_slope, &dy);
            host.run(true);
            let dx: Vec<f32> = dx.flatten_all().unwrap().to_vec1().unwrap();
            close(
                &format!("{name}, {order:?}, back"),
                &host.floats(host.program.image_slope),
                &dx,
            );
        }
    }
}

fn net_params(builder: &NetBuilder, node: Node) -> Vec<crate::Param> {
    let (graph, output) = builder.graph(node);
    graph.params(output)
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-3f32, |max, v| max.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-4 * scale,
            "{what}: element {i} is {found}, not {expected}"
        );
    }
}

fn conv(w: &Weights, name: &str, from: usize, to: usize, kernel: usize, stride: usize, padding: Padding) -> Conv2d {
    Conv2d::new(&w.pp(name), from, to, kernel, stride, padding).unwrap()
}

#[test]
fn a_classifier_of_convolutions_pools_and_products() {
    check("classifier", [1, 12, 12], |w, net| {
        let mut x = net.input();
        x = net.conv2d(x, &conv(w, "a", 1, 20, 3, 1, Padding::Valid)).unwrap();
        x = net.relu(x);
        x = net.conv2d(x, &conv(w, "b", 20, 18, 3, 1, Padding::Valid)).unwrap();
        x = net.relu(x);
        x = net.max_pool2d(x, 2).unwrap();
        x = net.linear(x, &Linear::new(&w.pp("c"), 18 * 16, 30).unwrap()).unwrap();
        x = net.relu(x);
        net.linear(x, &Linear::new(&w.pp("d"), 30, 10).unwrap()).unwrap()
    });
}

#[test]
fn an_auto_encoder_with_upsampling_and_sigmoid() {
    check("auto-encoder", [1, 8, 8], |w, net| {
        let mut x = net.input();
        x = net.conv2d(x, &conv(w, "a", 1, 18, 3, 1, Padding::Same)).unwrap();
        x = net.relu(x);
        x = net.max_pool2d(x, 2).unwrap();
        x = net.conv2d(x, &conv(w, "b", 18, 17, 3, 1, Padding::Same)).unwrap();
        x = net.relu(x);
        x = net.upsample_nearest2d(x, 2).unwrap();
        x = net.conv2d(x, &conv(w, "c", 17, 1, 3, 1, Padding::Same)).unwrap();
        net.sigmoid(x)
    });
}

#[test]
fn residuals_with_norms_and_strides() {
    check("residual", [3, 9, 9], |w, net| {
        let x = net.input();
        let mut x = net.scale(x, &[2., 3., 0.5], &[0.1, -0.2, 0.3]).unwrap();
        x = net.conv2d(x, &conv(w, "a", 3, 16, 3, 1, Padding::Same)).unwrap();
        let norm = |name: &str, c| BatchNorm2d::new(&w.pp(name), c).unwrap();
        let mut y = net.batch_norm(x, &norm("n1", 16)).unwrap();
        y = net.relu(y);
        let init = Init::glorot_uniform([16, 20], 9);
        let layer = Conv2d::without_bias(&w.pp("b"), [16, 20], 3, 2, Padding::Same, init).unwrap();
        y = net.conv2d(y, &layer).unwrap();
        y = net.batch_norm(y, &norm("n2", 20)).unwrap();
        y = net.relu(y);
        y = net.conv2d(y, &conv(w, "c", 20, 20, 3, 1, Padding::Same)).unwrap();
        let short = net.conv2d(x, &conv(w, "d", 16, 20, 1, 2, Padding::Same)).unwrap();
        let sum = net.add(y, short).unwrap();
        let mut z = net.batch_norm(sum, &norm("n3", 20)).unwrap();
        z = net.relu(z);
        z = net.global_avg_pool2d(z).unwrap();
        net.linear(z, &Linear::new(&w.pp("e"), 20, 10).unwrap()).unwrap()
    });
}

#[test]
fn a_net_with_skips_and_transposed_convolutions() {
    check("skips", [3, 8, 8], |w, net| {
        let x = net.input();
        let mut a = net.conv2d(x, &conv(w, "a", 3, 17, 3, 1, Padding::Same)).unwrap();
        a = net.relu(a);
        let mut b = net.max_pool2d(a, 2).unwrap();
        b = net.conv2d(b, &conv(w, "b", 17, 18, 3, 1, Padding::Same)).unwrap();
        b = net.relu(b);
        let up = ConvTranspose2d::new(&w.pp("up"), 18, 17, 2, 2, Padding::Valid).unwrap();
        let mut u = net.conv_transpose2d(b, &up).unwrap();
        u = net.relu(u);
        let both = net.concat(&[a, u]).unwrap();
        let y = net.conv2d(both, &conv(w, "c", 34, 3, 3, 1, Padding::Same)).unwrap();
        let y = net.add(y, x).unwrap();
        net.sigmoid(y)
    });
}

#[test]
fn shapes_that_fit_badly() {
    check("odd", [2, 11, 7], |w, net| {
        let x = net.input();
        let mut a = net.conv2d(x, &conv(w, "a", 2, 17, 4, 2, Padding::Same)).unwrap();
        a = net.max_pool2d(a, 2).unwrap();
        let up = ConvTranspose2d::new(&w.pp("up"), 17, 16, 3, 2, Padding::Same).unwrap();
        let mut b = net.conv_transpose2d(a, &up).unwrap();
        b = net.batch_norm(b, &BatchNorm2d::new(&w.pp("n"), 16).unwrap()).unwrap();
        b = net.upsample_nearest2d(b, 3).unwrap();
        b = net.avg_pool2d(b, 2).unwrap();
        b = net.max_pool2d(b, 3).unwrap();
        b = net.relu(b);
        net.flatten(b)
    });
}

#[test]
fn sums_whose_terms_share_a_gradient() {
    let norm = |w: &Weights, net: &mut NetBuilder, name: &str, x| {
        let [c, ..] = net.shape(x);
        let x = net.batch_norm(x, &BatchNorm2d::new(&w.pp(name), c).unwrap()).unwrap();
        net.relu(x)
    };
    check("identities", [3, 6, 6], |w, net| {
        let x = net.input();
        let mut x = net.conv2d(x, &conv(w, "stem", 3, 17, 3, 1, Padding::Same)).unwrap();
        x = net.relu(x);
        for name in ["a", "b"] {
            let w = &w.pp(name);
            let mut y = norm(w, net, "n1", x);
            y = net.conv2d(y, &conv(w, "1", 17, 18, 1, 1, Padding::Same)).unwrap();
            y = norm(w, net, "n2", y);
            y = net.conv2d(y, &conv(w, "2", 18, 17, 3, 1, Padding::Same)).unwrap();
            x = net.add(y, x).unwrap();
        }
        // Terms that later steps read before the sum does, and a term twice.
        let y = net.conv2d(x, &conv(w, "c", 17, 17, 3, 1, Padding::Same)).unwrap();
        let y = net.relu(y);
        let z = net.conv2d(y, &conv(w, "d", 17, 17, 1, 1, Padding::Same)).unwrap();
        let s = net.add(z, y).unwrap();
        let t = net.sigmoid(s);
        let u = net.add(t, s).unwrap();
        let v = net.add(u, u).unwrap();
        let v = net.add(v, x).unwrap();
        let q = net.conv2d(v, &conv(w, "e", 17, 20, 1, 2, Padding::Same)).unwrap();
        let q = net.relu(q);
        net.linear(q, &Linear::new(&w.pp("f"), 20 * 9, 10).unwrap()).unwrap()
    });
}

#[test]
fn convolutions_of_few_channels() {
    check("few", [2, 9, 7], |w, net| {
        let x = net.input();
        let mut a = net.conv2d(x, &conv(w, "a", 2, 19, 3, 1, Padding::Valid)).unwrap();
        a = net.relu(a);
        let b = net.conv2d(a, &conv(w, "b", 19, 3, 3, 1, Padding::Same)).unwrap();
        let mut c = net.conv2d(b, &conv(w, "c", 3, 33, 2, 1, Padding::Same)).unwrap();
        c = net.max_pool2d(c, 2).unwrap();
        let d = net.conv2d(c, &conv(w, "d", 33, 4, 2, 1, Padding::Valid)).unwrap();
        net.flatten(d)
    });
}

//! How one forward pass is to be made, and the random numbers it may draw.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a pass is made for. Scoring never reuses the random numbers of crafting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// An adversarial example is being made.
    Craft,
    /// A finished example is being judged.
    Score,
}

/// How one forward pass is to be made. Nothing of this is state in a model.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Batch statistics, dropout on, running statistics updated.
    pub train: bool,
    /// Batch statistics in an evaluation: running statistics stay as they are.
    pub batch_statistics: bool,
    /// Parameters are variables of the graph: weight gradients are wanted.
    pub track: bool,
    /// Seed of the experiment.
    pub seed: u64,
    /// Identity of each sample of the batch, `[N]`; empty: a sample is known by its position.
    pub sample_ids: Arc<[u64]>,
    /// Which repetition this is, of several random ones of the same sample.
    pub draw: u64,
    /// What the pass is made for.
    pub phase: Phase,
    /// Whether a GPU may round the factors of products to TF32.
    pub tf32: bool,
}

impl Pass {
    /// A deterministic evaluation: no training, no weight gradients, seed 0, no sample ids, scoring.
    pub fn eval() -> Pass {
        Pass {
            train: false,
            batch_statistics: false,
            track: false,
            seed: 0,
            sample_ids: Arc::from([]),
            draw: 0,
            phase: Phase::Score,
            tf32: false,
        }
    }

    /// A training step: train mode, weight gradients, crafting phase.
    pub fn training(seed: u64) -> Pass {
        Pass {
            train: true,
            track: true,
            phase: Phase::Craft,
            ..Pass::eval().with_seed(seed)
        }
    }

    /// The same pass for these samples, `[N]`.
    pub fn with_ids(self, sample_ids: impl Into<Arc<[u64]>>) -> Pass {
        Pass {
            sample_ids: sample_ids.into(),
            ..self
        }
    }

    /// The same pass with another seed.
    pub fn with_seed(self, seed: u64) -> Pass {
        Pass { seed, ..self }
    }

    /// The same pass, as repetition `draw`.
    pub fn with_draw(self, draw: u64) -> Pass {
        Pass { draw, ..self }
    }

    /// The same pass, made for `phase`.
    pub fn with_phase(self, phase: Phase) -> Pass {
        Pass { phase, ..self }
    }

    /// The same pass, with or without parameters as variables.
    pub fn with_track(self, track: bool) -> Pass {
        Pass { track, ..self }
    }

    /// Random generator of one sample, keyed by (seed, sample id, draw, phase, stream).
    ///
    /// `index` is the sample's place in the batch; it stands for the id only where the pass has no ids.
    pub fn rng(&self, index: usize, stream: u64) -> ChaCha8Rng {
        let id = self.sample_ids.get(index).copied().unwrap_or(index as u64);
        key_rng(&[self.seed, id, self.draw, self.phase as u64, stream])
    }

    /// Standard normal numbers in the shape, type and place of `x` `[N, ...]`, drawn sample by sample.
    ///
    /// # Errors
    /// If the pass names another number of samples than `N`, or the device of `x` fails.
    pub fn randn_like(&self, x: &Tensor, stream: u64) -> Result<Tensor> {
        self.fill(x.dims(), stream, |rng, out| {
            for pair in out.chunks_mut(2) {
                let (a, b) = normal_pair(rng);
                pair[0] = a;
                if let Some(second) = pair.get_mut(1) {
                    *second = b;
                }
            }
        })?
        .to_device(x.device())?
        .to_dtype(x.dtype())
    }

    /// Uniform numbers in `[lo, hi)`, `f32`, in the given shape `[N, ...]`, drawn sample by sample.
    ///
    /// # Errors
    /// If the pass names another number of samples than `N`, or the device fails.
    pub fn rand_uniform(&self, shape: &[usize], lo: f64, hi: f64, stream: u64, device: &Device) -> Result<Tensor> {
        self.fill(shape, stream, |rng, out| {
            out.fill_with(|| lo + (hi - lo) * rng.random::<f64>());
        })?
        .to_dtype(DType::F32)?
        .to_device(device)
    }

    /// A tensor `[N, ...]` in `f64` whose samples are filled by `draw`, each from its own generator.
    fn fill(&self, shape: &[usize], stream: u64, draw: impl Fn(&mut ChaCha8Rng, &mut [f64])) -> Result<Tensor> {
        let n = shape.first().copied().unwrap_or(1);
        self.check_ids(n)?;
        let per_sample = shape.iter().skip(1).product::<usize>();
        let mut values = vec![0.0; n * per_sample];
        for (index, sample) in values.chunks_mut(per_sample.max(1)).enumerate() {
            draw(&mut self.rng(index, stream), sample);
        }
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// An error if the pass names samples, but not as many as the batch holds.
    pub(crate) fn check_ids(&self, n: usize) -> Result<()> {
        let ids = self.sample_ids.len();
        if ids != 0 && ids != n {
            bail!("this pass names {ids} samples, but the batch holds {n}: give it one id a sample");
        }
        Ok(())
    }
}

/// Two independent standard normal numbers (Box and Muller).
pub(crate) fn normal_pair(rng: &mut ChaCha8Rng) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
    (radius * cos, radius * sin)
}

/// A random generator keyed by `words`. Fixed for ever: published results depend on it.
///
/// The words, and how many there are, pass through SplitMix64 one after the other; four more outputs
/// make the 32 bytes of the ChaCha8 key.
pub fn key_rng(words: &[u64]) -> ChaCha8Rng {
    let mut state = splitmix64(words.len() as u64);
    for &word in words {
        state = splitmix64(state ^ word);
    }
    let mut key = [0; 32];
    for bytes in key.chunks_mut(8) {
        state = splitmix64(state);
        bytes.copy_from_slice(&state.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014).
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `true` with probability `p`, from 32 random bits.
pub(crate) fn bernoulli(rng: &mut ChaCha8Rng, p: f64) -> bool {
    f64::from(rng.next_u32()) < p * 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_rng_is_fixed_for_ever() {
        // Computed apart from this code, from the definitions of SplitMix64 and ChaCha8.
        let first = |words: &[u64]| {
            let mut rng = key_rng(words);
            [rng.next_u64(), rng.next_u64()]
        };
        assert_eq!(first(&[]), [0xb369_1ce0_5c21_a5b5, 0x1846_2ab5_5f7f_a1ce]);
        assert_eq!(first(&[0]), [0x1320_263e_5477_0a04, 0x7f2b_7622_35e3_8e8b]);
        assert_eq!(first(&[1, 2, 3]), [0xa3f4_973c_bada_9c68, 0x335d_4345_6bb2_27a1]);
        assert_eq!(
            first(&[u64::MAX, 0, u64::MAX]),
            [0x590a_903b_6cdd_e966, 0x43bf_cd25_c0f9_1d4a]
        );
    }

    #[test]
    fn samples_without_ids_are_known_by_position() {
        let (mut a, mut b) = (Pass::eval().rng(3, 1), Pass::eval().with_ids([3]).rng(0, 1));
        assert_eq!(a.next_u64(), b.next_u64());
    }
}

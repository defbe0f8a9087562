//! Training of a model's parameters: gradients summed in the order of the calls, then one step of Adam.

use crate::convert::{import_to, run, to_abi};
use crate::model::{Network, Shared};
use crate::teacher::{self, Lesson, Teacher};
use advae_abi::abi_stable::std_types::{RSlice, RString, RVec};
use advae_abi::info::TrainSettings;
use advae_abi::{AbiError, AbiResult, AbiTrainable, CtxRef, ErrorCode, Guarded, guard};
use advae_nn::{Adam, Param, Pass, Weights};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gradient sums of a model, and the count of its living tapes.
#[derive(Default)]
pub(crate) struct Training {
    sums: Mutex<Vec<Option<Tensor>>>,
    tapes: Arc<()>,
}

/// Held by a tape for as long as it lives.
pub(crate) struct Alive(#[allow(dead_code)] Arc<()>);

impl Training {
    /// A mark of a living tape.
    pub(crate) fn tape(&self) -> Alive {
        Alive(self.tapes.clone())
    }

    fn living_tapes(&self) -> usize {
        Arc::strong_count(&self.tapes) - 1
    }

    /// Adds the gradients of one backward pass.
    pub(crate) fn add(&self, params: &[Param], gradients: &GradStore) -> Result<()> {
        let mut sums = lock(&self.sums);
        sums.resize(params.len(), None);
        for (sum, param) in sums.iter_mut().zip(params).filter(|(_, param)| param.trainable()) {
            let Some(gradient) = gradients.get(param.var().as_tensor()) else {
                continue;
            };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        Ok(())
    }

    fn take(&self) -> Vec<Option<Tensor>> {
        std::mem::take(&mut *lock(&self.sums))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parameters of a model, to be trained.
pub(crate) struct Trainable<N> {
    model: Arc<Shared<N>>,
    optimiser: Mutex<Adam>,
    /// The objective of its own, if that is what trains it.
    teacher: Option<Mutex<Guarded<Box<dyn Teacher>>>>,
}

impl<N: Network> Trainable<N> {
    pub(crate) fn new(model: Arc<Shared<N>>, settings: &TrainSettings) -> std::result::Result<Self, AbiError> {
        let bad = |text: String| AbiError::new(ErrorCode::Config, text);
        if settings.optimiser != "adam" {
            return Err(bad(format!(
                "unknown optimiser '{}': this plugin knows adam",
                settings.optimiser
            )));
        }
        let mut adam = Adam::default();
        for (name, value) in &settings.options {
            match name.as_str() {
                "beta1" => adam.beta1 = *value,
                "beta2" => adam.beta2 = *value,
                "eps" => adam.eps = *value,
                "weight_decay" => adam.weight_decay = *value,
                "decoupled_weight_decay" => adam.decoupled_weight_decay = *value,
                "clip_norm" => adam.clip_norm = Some(*value),
                other => {
                    return Err(bad(format!(
                        "unknown option '{other}' of adam: expected beta1, beta2, eps, weight_decay, decoupled_weight_decay or clip_norm"
                    )));
                }
            }
        }
        let teach = |own| {
            model
                .network
                .teacher(own, &Weights::init(settings.seed).with_device(&model.device))
        };
        let teacher = settings.own.as_ref().map(teach).transpose();
        let teacher = teacher.map_err(|e| AbiError {
            code: ErrorCode::Config as u32,
            ..to_abi(e)
        })?;
        Ok(Self {
            model,
            optimiser: Mutex::new(adam),
            teacher: teacher.map(|teacher| Mutex::new(Guarded::new(teacher))),
        })
    }

    fn step_now(&self, learning_rate: f64) -> Result<()> {
        let tapes = self.model.training.living_tapes();
        if tapes > 0 {
            candle_core::bail!("{tapes} tapes of the model are alive: drop them before the weights change")
        }
        let mut gradients = self.model.training.take();
        if gradients.iter().all(Option::is_none) {
            candle_core::bail!("no gradient was accumulated since the last step")
        }
        gradients.resize(self.model.params.len(), None);
        lock(&self.optimiser).step(&self.model.params, &gradients, learning_rate)
    }

    fn learn_now(&self, pass: Pass, lesson: advae_abi::Lesson<'_>) -> Result<RString> {
        let Some(teacher) = &self.teacher else {
            candle_core::bail!("this trainable was made for the host's objectives, not for one of its own")
        };
        let adversarial = lesson.adversarial.into_option();
        let lesson = Lesson {
            pass,
            clean: self.model.images(lesson.clean, false)?,
            adversarial: adversarial.map(|x| self.model.images(x, false)).transpose()?,
            labels: import_to(&self.model.device, lesson.labels, false)?,
            learning_rate: lesson.learning_rate,
        };
        let measured = lock(teacher).learn(&lesson)?;
        let measured: Map<String, Value> = (measured.into_iter())
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Ok(Value::Object(measured).to_string().into())
    }

    fn save_state_now(&self) -> Result<Vec<u8>> {
        let optimiser = lock(&self.optimiser).save_state()?;
        let Some(teacher) = &self.teacher else {
            return Ok(optimiser);
        };
        advae_nn::pack(&teacher::save(&mut ***lock(teacher))?)
    }

    fn load_state_now(&self, blob: &[u8]) -> Result<()> {
        match &self.teacher {
            Some(teacher) => teacher::load(&mut ***lock(teacher), &advae_nn::unpack(blob)?),
            None => lock(&self.optimiser).load_state(blob),
        }
    }
}

/// Sets parameters from a safetensors blob that holds every one of them.
pub(crate) fn load_weights(params: &[Param], blob: &[u8]) -> Result<()> {
    let tensors = candle_core::safetensors::load_buffer(blob, &candle_core::Device::Cpu)?;
    for param in params {
        let Some(tensor) = tensors.get(param.name()) else {
            candle_core::bail!("no weight '{}' in the file", param.name())
        };
        param.set(tensor)?;
    }
    Ok(())
}

impl<N: Network> AbiTrainable for Trainable<N> {
    fn step(&self, learning_rate: f64) -> AbiResult<()> {
        guard(|| self.step_now(learning_rate).map_err(to_abi))
    }

    fn zero_gradients(&self) -> AbiResult<()> {
        guard(|| {
            self.model.training.take();
            Ok(())
        })
    }

    fn save_weights(&self) -> AbiResult<RVec<u8>> {
        guard(|| {
            advae_nn::save_safetensors(&self.model.params)
                .map(RVec::from)
                .map_err(to_abi)
        })
    }

    fn load_weights(&self, blob: RSlice<'_, u8>) -> AbiResult<()> {
        guard(|| load_weights(&self.model.params, blob.as_slice()).map_err(to_abi))
    }

    fn save_state(&self) -> AbiResult<RVec<u8>> {
        guard(|| self.save_state_now().map(RVec::from).map_err(to_abi))
    }

    fn load_state(&self, blob: RSlice<'_, u8>) -> AbiResult<()> {
        guard(|| self.load_state_now(blob.as_slice()).map_err(to_abi))
    }

    fn learn(&self, ctx: CtxRef<'_>, lesson: advae_abi::Lesson<'_>) -> AbiResult<RString> {
        run(ctx, |pass| self.learn_now(pass, lesson))
    }
}

//! Attacks of plugins. What they return is checked for shape here and measured when it is scored.

use crate::plugin::fenv::Foreign;
use crate::plugin::{Plugin, files};
use crate::terminal::progress::Ticker;
use crate::wire::boundary::{LentCall, LentTensor, Origin};
use crate::wire::device::DevicePipeline;
use crate::wire::info;
use crate::wire::on_device::OnDevice;
use crate::wire::oracle::{Oracle, OracleState, Rules};
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{AttackInfo, Construct, Kind, Manifest};
use advae_abi::{AbiTensorRef, AttackBox, DLDevice, OracleBox};
use anyhow::{Result, ensure};
use serde_json::{Map, Value};
use std::sync::Arc;

/// An attack; clones share it.
#[derive(Clone)]
pub struct Attack(Arc<Inner>);

struct Inner {
    name: String,
    origin: Origin,
    info: AttackInfo,
    /// Whether it takes images that lie on the device of its target.
    device: bool,
    attack: Foreign<AttackBox>,
}

/// What an attack returned for a batch.
#[derive(Clone, Debug)]
pub struct Perturbed {
    /// One image a sample.
    pub x_adv: Tensor,
    /// Whether the attack holds that it succeeded; absent: it does not say.
    pub found: Option<Vec<bool>>,
    /// Target labels of a targeted attack.
    pub targets: Option<Vec<u32>>,
}

/// Whether a plugin of this manifest knows device tensors: since contract 1.3, where it was built for them.
fn takes_device(manifest: &Manifest) -> bool {
    let mut numbers = manifest
        .contract
        .split('.')
        .map(|number| number.parse().unwrap_or(0u32));
    manifest.cuda && (numbers.next(), numbers.next()) >= (Some(1), Some(3))
}

impl Attack {
    /// Constructs an attack with these settings.
    ///
    /// # Errors
    /// Where the plugin is no attack or refuses the settings.
    pub fn construct(plugin: &Plugin, config: Map<String, Value>) -> Result<Self> {
        Self::construct_for(plugin, config, "cpu")
    }

    /// The same for targets on that device, which an attack that works there opens now: opening takes longer than many an attack.
    ///
    /// # Errors
    /// As for [`construct`](Self::construct), and where the device does not open.
    pub fn construct_for(plugin: &Plugin, config: Map<String, Value>, device: &str) -> Result<Self> {
        plugin.expect_kind(Kind::Attack)?;
        let name = plugin.manifest.name.clone();
        let origin = Origin::new(Kind::Attack, &name);
        let request = Construct {
            config: files::given(plugin, &config)?.config,
            device: if takes_device(&plugin.manifest) { device } else { "cpu" }.into(),
            ..Construct::default()
        };
        let json = serde_json::to_string(&request)?;
        let new = || (plugin.root().new_attack())(json.as_str().into()).map(Foreign::new);
        let attack = origin.enter("constructor", new)?;
        let info = info::attack(&origin, &origin.enter("info", || attack.info().map(String::from))?)?;
        Ok(Self(Arc::new(Inner {
            name,
            origin,
            device: info.device && takes_device(&plugin.manifest),
            info,
            attack,
        })))
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it says of itself.
    pub fn info(&self) -> &AttackInfo {
        &self.0.info
    }

    /// Perturbs clean images `x [N,C,H,W]` with true labels `y [N]`.
    ///
    /// The images may be anything: out of bounds, over budget, NaN. Only the shape is checked.
    ///
    /// # Errors
    /// Where the plugin fails, writes into what it is lent, or returns another number of images or images of another shape.
    pub fn perturb(&self, call: &Call, oracle: &OracleBox, x: &Tensor, y: &[u32]) -> Result<Perturbed> {
        let name = self.name();
        ensure!(
            y.len() == x.rows(),
            "attack '{name}' was given {} labels for {} images",
            y.len(),
            x.rows()
        );
        let labels: Vec<i64> = y.iter().map(|label| i64::from(*label)).collect();
        let mut images = LentTensor::new("images", call, x);
        let perturbed = self.enter(call, oracle, images.lend(), &labels)?;
        self.0.origin.check_unwritten(&[&images])?;
        let x_adv = self.images(&perturbed, x, None)?;
        self.receive(&perturbed, x_adv)
    }

    /// Perturbs clean images as [`perturb`](Self::perturb) does, given an oracle by these rules for the samples of the call, and tells what
    /// became of the oracle. The images stay on the target's device meanwhile, where the attack and every model of the target take
    /// tensors there: they are copied there once, and the perturbed ones from there.
    pub fn search(
        &self,
        call: &Call,
        rules: Rules,
        x: &Tensor,
        y: &[u32],
        ticker: Ticker,
    ) -> (Result<Perturbed>, Arc<OracleState>) {
        let meter = rules.meter.clone();
        let device = match self.goes_on(&rules) {
            true => OnDevice::of(&rules.target, call.ids),
            false => Ok(None),
        };
        let device = match device {
            Ok(device) => device,
            Err(error) => return (Err(error), Arc::default()),
        };
        let (oracle, state) = Oracle::boxed_on(device, rules, call.ids, y, ticker);
        let perturbed = match state.device() {
            Some(device) => self.perturb_on(&device.pipeline, call, &oracle, x, y),
            None => self.perturb(call, &oracle, x, y),
        };
        drop(oracle);
        state.settle(&meter);
        if let Some(device) = state.device() {
            let (name, pipeline) = (self.name(), &device.pipeline);
            tracing::debug!("attack '{name}' on {}: {}", pipeline.id(), pipeline.copies());
        }
        (perturbed, state)
    }

    /// Whether its searches by these rules run on one device, and therefore on one thread.
    pub fn goes_on(&self, rules: &Rules) -> bool {
        self.0.device && rules.watch.is_none() && DevicePipeline::of(&rules.target).is_some()
    }

    fn perturb_on(
        &self,
        device: &DevicePipeline,
        call: &Call,
        oracle: &OracleBox,
        x: &Tensor,
        y: &[u32],
    ) -> Result<Perturbed> {
        let labels: Vec<i64> = y.iter().map(|label| i64::from(*label)).collect();
        let images = device.upload(x)?;
        let perturbed = self.enter(&call.on_device(), oracle, images.view(), &labels)?;
        let x_adv = self.images(&perturbed, x, Some(device))?;
        self.receive(&perturbed, x_adv)
    }

    /// Runs the plugin's code.
    fn enter(
        &self,
        call: &Call,
        oracle: &OracleBox,
        x: AbiTensorRef<'_>,
        labels: &[i64],
    ) -> Result<Foreign<advae_abi::Perturbed>> {
        let (mut ids, mut labels) = (LentCall::new(call), LentTensor::labels(call, labels));
        let origin = &self.0.origin;
        let perturb = || {
            let perturbed = self.0.attack.perturb(ids.lend(), oracle, x, labels.lend());
            perturbed.map(Foreign::new)
        };
        let perturbed = origin.enter("perturb", perturb)?;
        origin.check_unwritten(&[&ids, &labels])?;
        Ok(perturbed)
    }

    /// The returned images, of the shape of `x`, from wherever they lie.
    fn images(&self, perturbed: &advae_abi::Perturbed, x: &Tensor, device: Option<&DevicePipeline>) -> Result<Tensor> {
        let blame = |error| self.0.origin.blame(&error);
        let x_adv = perturbed.x_adv.view();
        let shape = x_adv.shape().map_err(blame)?;
        ensure!(
            shape == x.shape,
            "attack '{}' returned images of shape {shape:?} for images of shape {:?}",
            self.name(),
            x.shape
        );
        match device.filter(|_| x_adv.device() != DLDevice::CPU) {
            Some(device) => {
                device.check(x_adv, &shape, "images").map_err(blame)?;
                device.download(x_adv, &shape)
            }
            None => Tensor::copy_from(x_adv, &shape, "images").map_err(blame),
        }
    }

    fn receive(&self, perturbed: &advae_abi::Perturbed, x_adv: Tensor) -> Result<Perturbed> {
        let (name, n) = (self.name(), x_adv.rows());
        let one_a_sample = |what: &str, len: usize| {
            ensure!(
                len == 0 || len == n,
                "attack '{name}' returned {len} {what} for {n} images"
            );
            Ok(len == n && n > 0)
        };
        let found = one_a_sample("verdicts", perturbed.found.len())?;
        let targets = one_a_sample("targets", perturbed.targets.len())?;
        Ok(Perturbed {
            x_adv,
            found: found.then(|| perturbed.found.iter().map(|f| *f != 0).collect()),
            targets: targets.then(|| perturbed.targets.to_vec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_tensors_are_for_attacks_that_know_them() {
        let takes = |contract: &str, cuda: bool| {
            let json = format!(
                r#"{{"contract":"{contract}","kind":"attack","name":"a","version":"1","sdk":"none","rustc":"r","panic":"unwind","cuda":{cuda}}}"#
            );
            takes_device(&Manifest::from_json(json.as_bytes()).unwrap())
        };
        assert!(takes("1.3.0", true) && takes("1.10.0", true) && !takes("1.3.0", false));
        assert!(!takes("1.2.0", true) && !takes("1.0.0", true) && !takes("1", true));
    }
}

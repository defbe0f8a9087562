//! Attacks of plugins. What they return is checked for shape here and measured when it is scored.

use crate::plugin::fenv::Foreign;
use crate::plugin::{Plugin, files};
use crate::wire::boundary::{LentCall, LentTensor, Origin};
use crate::wire::info;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{AttackInfo, Construct, Kind};
use advae_abi::{AttackBox, OracleBox};
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

impl Attack {
    /// Constructs an attack with these settings.
    ///
    /// # Errors
    /// Where the plugin is no attack or refuses the settings.
    pub fn construct(plugin: &Plugin, config: Map<String, Value>) -> Result<Self> {
        plugin.expect_kind(Kind::Attack)?;
        let name = plugin.manifest.name.clone();
        let origin = Origin::new(Kind::Attack, &name);
        let request = Construct {
            config: files::given(plugin, &config)?.config,
            device: "cpu".into(),
            ..Construct::default()
        };
        let json = serde_json::to_string(&request)?;
        let new = || (plugin.root().new_attack())(json.as_str().into()).map(Foreign::new);
        let attack = origin.enter("constructor", new)?;
        let info = info::attack(&origin, &origin.enter("info", || attack.info().map(String::from))?)?;
        Ok(Self(Arc::new(Inner {
            name,
            origin,
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
        let (mut ids, mut images) = (LentCall::new(call), LentTensor::new("images", call, x));
        let mut lent_labels = LentTensor::labels(call, &labels);
        let origin = &self.0.origin;
        let perturb = || {
            let perturbed = self
                .0
                .attack
                .perturb(ids.lend(), oracle, images.lend(), lent_labels.lend());
            perturbed.map(Foreign::new)
        };
        let perturbed = origin.enter("perturb", perturb)?;
        origin.check_unwritten(&[&ids, &images, &lent_labels])?;
        self.receive(&perturbed, x)
    }

    fn receive(&self, perturbed: &advae_abi::Perturbed, x: &Tensor) -> Result<Perturbed> {
        let (name, n) = (self.name(), x.rows());
        let blame = |error| self.0.origin.blame(&error);
        let x_adv = perturbed.x_adv.view();
        let shape = x_adv.shape().map_err(blame)?;
        ensure!(
            shape == x.shape,
            "attack '{name}' returned images of shape {shape:?} for images of shape {:?}",
            x.shape
        );
        let x_adv = Tensor::copy_from(x_adv, &shape, "images").map_err(blame)?;
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

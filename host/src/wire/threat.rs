//! Threat models of plugins, and what the host offers them while they prepare.

use crate::plugin::fenv::{self, Foreign};
use crate::plugin::{Plugin, files};
use crate::terminal::cancel::Cancel;
use crate::wire::boundary::{LentCall, Origin};
use crate::wire::construct::fresh;
use crate::wire::info;
use crate::wire::model::Model;
use crate::wire::oracle::{Meter, export_labels, images, to_abi};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::Call;
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RStr, RString, Tuple2};
use advae_abi::info::{Access, Construct, Kind};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiServices, AbiServices_TO, AbiTensor, AbiTensorRef, CtxRef,
    ErrorCode, ModelBox, ServicesBox, Taped, ThreatModelBox, TrainableBox, guard,
};
use advae_data::Dataset;
use anyhow::Result;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A threat model; clones share it.
#[derive(Clone)]
pub struct ThreatModel(Arc<Inner>);

struct Inner {
    name: String,
    origin: Origin,
    access: Access,
    threat_model: Foreign<ThreatModelBox>,
}

impl ThreatModel {
    /// Constructs a threat model with these settings.
    ///
    /// # Errors
    /// Where the plugin is none or refuses the settings.
    pub fn construct(plugin: &Plugin, config: Map<String, Value>) -> Result<Self> {
        plugin.expect_kind(Kind::ThreatModel)?;
        let name = plugin.manifest.name.clone();
        let origin = Origin::new(Kind::ThreatModel, &name);
        let request = Construct {
            config: files::given(plugin, &config)?.config,
            device: "cpu".into(),
            ..Construct::default()
        };
        let json = serde_json::to_string(&request)?;
        let new = || (plugin.root().new_threat_model())(json.as_str().into()).map(Foreign::new);
        let threat_model = origin.enter("constructor", new)?;
        let access = origin.enter("access", || threat_model.access().map(String::from))?;
        Ok(Self(Arc::new(Inner {
            access: info::read(&origin, &access)?,
            name,
            origin,
            threat_model,
        })))
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it grants.
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// Prepares a cell; returns the substitute, where it makes one.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn prepare(&self, call: &Call, services: impl AbiServices + 'static) -> Result<Option<Model>> {
        let mut ids = LentCall::new(call);
        let services: ServicesBox = AbiServices_TO::from_value(services, TD_Opaque);
        let Inner {
            origin, threat_model, ..
        } = &*self.0;
        let prepare = || threat_model.prepare(ids.lend(), &services);
        let prepared = origin.enter("prepare", prepare)?.into_option().map(Foreign::new);
        origin.check_unwritten(&[&ids])?;
        prepared
            .map(|model| Model::wrap(Kind::Classifier, "substitute", model))
            .transpose()
    }
}

/// What the host offers to a threat model.
pub struct Services {
    /// Plugin of the classifier under attack.
    pub architecture: Plugin,
    /// How that classifier was constructed.
    pub request: Construct,
    /// The whole defended model.
    pub pipeline: Pipeline,
    /// Images kept out of scoring.
    pub seeds: Option<Arc<Dataset>>,
    /// What the threat model itself grants.
    pub access: Access,
    /// Seed of the experiment.
    pub seed: u64,
    /// Threads a plugin may use in one call.
    pub call_threads: usize,
    /// Shared with the cell's oracles.
    pub meter: Arc<Meter>,
    /// Stops the run.
    pub cancel: Cancel,
}

impl AbiServices for Services {
    fn fresh_classifier(&self, name: RStr<'_>, seed: u64) -> AbiResult<ModelBox> {
        self.answer(|| {
            let (plugin, config) = match name.as_str() {
                "" => (self.architecture.clone(), self.request.config.clone()),
                name => (Plugin::find(name, Kind::Classifier).map_err(to_abi)?, Map::new()),
            };
            plugin.expect_kind(Kind::Classifier).map_err(to_abi)?;
            let origin = Origin::new(Kind::Classifier, &plugin.manifest.name);
            let new = || fresh(&plugin, config, &self.request.device, seed).into();
            let model = Foreign::new(origin.enter("constructor", new).map_err(to_abi)?);
            let cancel = self.cancel.clone();
            Ok(AbiModel_TO::from_value(
                Interruptible { origin, model, cancel },
                TD_Opaque,
            ))
        })
    }

    fn seeds(&self) -> AbiResult<Tuple2<AbiTensor, AbiTensor>> {
        self.answer(|| {
            let Some(seeds) = &self.seeds else {
                let sets = advae_data::sets()
                    .iter()
                    .filter(|set| set.test && set.has_attacker_images());
                let names: Vec<&str> = sets.map(|set| set.name).collect();
                let text = format!(
                    "this dataset has no images set aside for an attacker: use one of --dataset {}",
                    names.join(", ")
                );
                return Err(AbiError::new(ErrorCode::Unsupported, text));
            };
            let [c, h, w] = seeds.shape;
            let x = AbiTensor::from_vec(seeds.images.clone(), &[seeds.len(), c, h, w])?;
            let labels: Vec<i64> = seeds.labels.iter().map(|label| i64::from(*label)).collect();
            Ok(Tuple2(x, AbiTensor::from_vec(labels, &[seeds.len()])?))
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.answer(|| {
            let ids = ctx.sample_ids().to_vec();
            let x = images(x, &ids, &self.pipeline)?;
            self.meter.charge(ids.len() as u64, self.access.query_limit)?;
            let call = Call::craft(self.seed, &ids).with_draw(ctx.get().draw);
            let logits = self
                .pipeline
                .forward(&call.with_threads(self.call_threads), &x)
                .map_err(to_abi)?;
            export_labels(&logits)
        })
    }
}

/// A classifier that a threat model trains. Training may call nothing else of the host for minutes: so each pass asks whether the run
/// goes on.
struct Interruptible {
    origin: Origin,
    model: Foreign<ModelBox>,
    cancel: Cancel,
}

impl Interruptible {
    fn call<T>(&self, what: &'static str, f: impl FnOnce(&ModelBox) -> AbiResult<T>) -> AbiResult<T> {
        let call = || self.origin.enter(what, || f(&self.model)).map_err(to_abi);
        fenv::as_host(|| guard(|| self.cancel.check().and_then(|()| call())))
    }
}

impl AbiModel for Interruptible {
    fn info(&self) -> AbiResult<RString> {
        self.call("info", |model| model.info())
    }

    fn forward(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.call("forward", |model| model.forward(ctx, x))
    }

    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.call("forward", |model| model.forward_tape(ctx, x))
    }

    fn trainable(&self, settings: RStr<'_>) -> AbiResult<TrainableBox> {
        self.call("trainable", |model| model.trainable(settings))
    }

    fn features(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.call("features", |model| model.features(ctx, x))
    }

    fn features_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.call("features", |model| model.features_tape(ctx, x))
    }
}

impl Services {
    /// Runs the host's own code for the threat model.
    fn answer<T>(&self, f: impl FnOnce() -> std::result::Result<T, AbiError>) -> AbiResult<T> {
        fenv::as_host(|| guard(|| self.cancel.check().and_then(|()| f())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_abi::abi_stable::std_types::RErr;
    use advae_abi::not_trainable;

    struct Nothing;

    impl AbiModel for Nothing {
        fn info(&self) -> AbiResult<RString> {
            RErr(AbiError::new(ErrorCode::Compute, "asked"))
        }

        fn forward(&self, _: CtxRef<'_>, _: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
            RErr(AbiError::new(ErrorCode::Compute, "asked"))
        }

        fn forward_tape(&self, _: CtxRef<'_>, _: AbiTensorRef<'_>) -> AbiResult<Taped> {
            RErr(AbiError::new(ErrorCode::Compute, "asked"))
        }

        fn trainable(&self, _: RStr<'_>) -> AbiResult<TrainableBox> {
            not_trainable()
        }
    }

    #[test]
    fn a_model_under_training_answers_until_the_run_is_cancelled() {
        let cancel = Cancel::default();
        let model = Interruptible {
            origin: Origin::new(Kind::Classifier, "m"),
            model: Foreign::new(AbiModel_TO::from_value(Nothing, TD_Opaque)),
            cancel: cancel.clone(),
        };
        let pass = || model.info().into_result().unwrap_err();
        assert_eq!(pass().to_string(), "classifier 'm': asked");
        cancel.cancel();
        assert!(pass().is(ErrorCode::Cancelled));
    }
}

//! Threat models of plugins, and what the host offers them while they prepare.

use crate::plugin::Plugin;
use crate::terminal::cancel::Cancel;
use crate::wire::model::Model;
use crate::wire::oracle::{Meter, export_labels, to_abi};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RStr, Tuple2};
use advae_abi::info::{Access, Construct, Kind, WeightSource};
use advae_abi::{
    AbiError, AbiResult, AbiServices, AbiServices_TO, AbiTensor, AbiTensorRef, CtxRef, ErrorCode, ModelBox,
    ServicesBox, ThreatModelBox, guard,
};
use advae_data::Dataset;
use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A threat model; clones share it.
#[derive(Clone)]
pub struct ThreatModel(Arc<Inner>);

struct Inner {
    name: String,
    access: Access,
    threat_model: ThreatModelBox,
}

impl ThreatModel {
    /// Constructs a threat model with these settings.
    ///
    /// # Errors
    /// Where the plugin is none or refuses the settings.
    pub fn construct(plugin: &Plugin, config: Map<String, Value>) -> Result<Self> {
        plugin.expect_kind(Kind::ThreatModel)?;
        let name = plugin.manifest.name.clone();
        let context = || format!("threat model '{name}'");
        let request = Construct {
            config,
            device: "cpu".into(),
            ..Construct::default()
        };
        let json = serde_json::to_string(&request)?;
        let threat_model = (plugin.root().new_threat_model())(json.as_str().into()).into_result();
        let threat_model = threat_model.map_err(|e| anyhow!(e)).with_context(context)?;
        let access = threat_model
            .access()
            .into_result()
            .map_err(|e| anyhow!(e))
            .with_context(context)?;
        let access =
            serde_json::from_str(&access).with_context(|| format!("{} declares its access badly", context()))?;
        Ok(Self(Arc::new(Inner {
            name,
            access,
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
        let ctx = call.context();
        let services: ServicesBox = AbiServices_TO::from_value(services, TD_Opaque);
        let prepared = self.0.threat_model.prepare(ctx.lend(call.ids), &services).into_result();
        let prepared = prepared
            .map_err(|e| anyhow!(e))
            .with_context(|| format!("threat model '{}'", self.name()))?;
        prepared
            .into_option()
            .map(|model| Model::from_box(Kind::Classifier, "substitute", model))
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
        guard(|| {
            self.cancel.check()?;
            let (plugin, config) = match name.as_str() {
                "" => (self.architecture.clone(), self.request.config.clone()),
                name => (Plugin::find(name).map_err(to_abi)?, Map::new()),
            };
            plugin.expect_kind(Kind::Classifier).map_err(to_abi)?;
            let device = self.request.device.clone();
            let request = Construct {
                config,
                weights: WeightSource::Init(seed),
                device,
                backward: None,
            };
            let json = serde_json::to_string(&request).map_err(|e| AbiError::from_error(ErrorCode::Config, &e))?;
            (plugin.root().new_model())(json.as_str().into()).into_result()
        })
    }

    fn seeds(&self) -> AbiResult<Tuple2<AbiTensor, AbiTensor>> {
        guard(|| {
            let Some(seeds) = &self.seeds else {
                let text = "this dataset has no images set aside for an attacker: use --dataset mnist-1k or mnist-test";
                return Err(AbiError::new(ErrorCode::Unsupported, text));
            };
            let [c, h, w] = seeds.shape;
            let x = AbiTensor::from_vec(seeds.images.clone(), &[seeds.len(), c, h, w])?;
            let labels: Vec<i64> = seeds.labels.iter().map(|label| i64::from(*label)).collect();
            Ok(Tuple2(x, AbiTensor::from_vec(labels, &[seeds.len()])?))
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        guard(|| {
            self.cancel.check()?;
            let x = Tensor::copy_from(x)?;
            self.meter.charge(x.rows() as u64, self.access.query_limit)?;
            let call = Call::craft(self.seed, ctx.sample_ids()).with_draw(ctx.get().draw);
            let logits = self
                .pipeline
                .forward(&call.with_threads(self.call_threads), &x)
                .map_err(to_abi)?;
            export_labels(&logits)
        })
    }
}

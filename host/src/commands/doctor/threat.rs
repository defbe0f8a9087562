//! Threat models: what they grant, and what they prepare.

use super::checklist::{Checklist, Finding};
use super::patient::Patient;
use super::toy;
use crate::plugin::Plugin;
use crate::wire::construct::fresh;
use crate::wire::model::Model;
use crate::wire::oracle::{Meter, export_labels, images, to_abi};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::Call;
use crate::wire::threat::ThreatModel;
use advae_abi::abi_stable::std_types::{RStr, Tuple2};
use advae_abi::info::{Access, Kind, Target};
use advae_abi::{AbiResult, AbiServices, AbiTensor, AbiTensorRef, CtxRef, ModelBox, guard};
use advae_data::Dataset;
use anyhow::Result;
use serde_json::Map;
use std::sync::Arc;
use std::time::Instant;

/// Reads the declaration, and lets it prepare an attack on the host's linear classifier.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let threat_model = ThreatModel::construct(&patient.plugin, patient.request.config.clone())?;
    list.check("access", || Ok(access(threat_model.access())))?;
    list.check("preparation", || prepare(&threat_model))
}

/// Prepares as for a cell of `eval`, with the images that mnist-1k sets aside, and says what it cost.
fn prepare(threat_model: &ThreatModel) -> Result<Finding> {
    let meter = Arc::new(Meter::default());
    let services = ToyServices {
        target: toy::model()?,
        seeds: advae_data::load("mnist-1k-seeds", None)?,
        limit: threat_model.access().query_limit,
        meter: meter.clone(),
    };
    let start = Instant::now();
    let substitute = threat_model.prepare(&Call::craft(0, &[]), services)?;
    let cost = format!(
        "in {:.1} s, with {} label queries",
        start.elapsed().as_secs_f64(),
        meter.queries()
    );
    Ok(prepared(threat_model.access().target, substitute.as_ref(), &cost))
}

/// `cost`: in words.
fn prepared(target: Target, substitute: Option<&Model>, cost: &str) -> Finding {
    let Some(substitute) = substitute else {
        return Finding::expect(
            target != Target::Substitute,
            format!("no substitute, {cost}"),
            "its access names a substitute as the target: return one from `prepare`",
        );
    };
    let (input, classes) = (substitute.info().input, substitute.info().classes);
    let of = |input: Option<[usize; 3]>, classes: Option<usize>| {
        format!(
            "images {:?} of {} classes",
            input.unwrap_or_default(),
            classes.unwrap_or_default()
        )
    };
    let text = format!("a substitute for {}, {cost}", of(input, classes));
    if (input, classes) != (Some(toy::INPUT), Some(toy::CLASSES)) {
        let needed = of(Some(toy::INPUT), Some(toy::CLASSES));
        return Finding::Fail(format!(
            "{text}: the model under attack takes {needed}, train one that takes the same"
        ));
    }
    let advice = "its access names another target, so that nobody attacks it: declare the target `substitute`";
    Finding::hope(target == Target::Substitute, text, advice)
}

/// What the host offers to a threat model, with its own linear classifier as the model under attack.
struct ToyServices {
    target: Model,
    seeds: Dataset,
    limit: Option<u64>,
    meter: Arc<Meter>,
}

impl AbiServices for ToyServices {
    fn fresh_classifier(&self, name: RStr<'_>, seed: u64) -> AbiResult<ModelBox> {
        guard(|| {
            if name.is_empty() {
                return Ok(toy::boxed(seed));
            }
            let plugin = Plugin::find(&name, Kind::Classifier).map_err(to_abi)?;
            fresh(&plugin, Map::new(), "cpu", seed)
        })
    }

    fn seeds(&self) -> AbiResult<Tuple2<AbiTensor, AbiTensor>> {
        guard(|| {
            let (n, [c, h, w]) = (self.seeds.len(), self.seeds.shape);
            let x = AbiTensor::from_vec(self.seeds.images.clone(), &[n, c, h, w])?;
            let labels: Vec<i64> = self.seeds.labels.iter().map(|label| i64::from(*label)).collect();
            Ok(Tuple2(x, AbiTensor::from_vec(labels, &[n])?))
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        guard(|| {
            let x = images(x, ctx.sample_ids(), &Pipeline::undefended(self.target.clone()))?;
            self.meter.charge(x.rows() as u64, self.limit)?;
            let call = Call::craft(0, ctx.sample_ids());
            export_labels(&self.target.forward(&call, &x).map_err(to_abi)?)
        })
    }
}

fn access(access: &Access) -> Finding {
    let Access {
        target,
        gradients,
        logits,
        labels,
        query_limit,
    } = access;
    let granted = [("gradients", gradients), ("logits", logits), ("labels", labels)];
    let granted: Vec<&str> = granted.iter().filter(|(_, yes)| **yes).map(|(name, _)| *name).collect();
    let limit = query_limit
        .map(|n| format!(", at most {n} label queries"))
        .unwrap_or_default();
    if granted.is_empty() {
        return Finding::Fail("it grants nothing: no attack can run under it".into());
    }
    let text = format!("of the {target:?}: {}{limit}", granted.join(", ")).to_lowercase();
    Finding::hope(
        query_limit.is_none() || *labels,
        text,
        "a limit of queries has no effect without labels",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_abi::info::Target;

    #[test]
    fn a_declaration_reads_as_a_sentence() {
        let mut declared = Access {
            target: Target::Pipeline,
            gradients: false,
            logits: false,
            labels: true,
            query_limit: Some(10),
        };
        let text = "of the pipeline: labels, at most 10 label queries";
        assert_eq!(access(&declared), Finding::Pass(text.into()));
        (declared.labels, declared.logits) = (false, true);
        assert!(matches!(access(&declared), Finding::Warn(_)));
        declared.logits = false;
        assert!(matches!(access(&declared), Finding::Fail(_)));
    }
}

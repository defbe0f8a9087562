//! Threat models: what they grant.

use super::Patient;
use super::checklist::{Checklist, Finding};
use crate::wire::threat::ThreatModel;
use advae_abi::info::Access;
use anyhow::Result;

/// Reads the declaration.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let threat_model = ThreatModel::construct(&patient.plugin, patient.request.config.clone())?;
    list.check("access", || Ok(access(threat_model.access())))
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

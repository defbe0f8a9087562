//! Oblivious: the attacker knows the classifier but not that a purifier stands in front of it.

use advae_sdk::prelude::*;

struct Oblivious;

impl ThreatModel for Oblivious {
    type Settings = NoSettings;

    fn new(_: NoSettings) -> Result<Self> {
        Ok(Self)
    }

    fn access(&self) -> Access {
        Access {
            target: Target::Classifier,
            gradients: true,
            logits: true,
            labels: true,
            query_limit: None,
        }
    }
}

export_plugin! { threat_model: Oblivious }

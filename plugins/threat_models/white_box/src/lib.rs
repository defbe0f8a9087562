//! White-box: the attacker knows purifier and classifier, and differentiates through both.

use advae_sdk::prelude::*;

struct WhiteBox;

impl ThreatModel for WhiteBox {
    type Settings = NoSettings;

    fn new(_: NoSettings) -> Result<Self> {
        Ok(Self)
    }

    fn access(&self) -> Access {
        Access {
            target: Target::Pipeline,
            gradients: true,
            logits: true,
            labels: true,
            query_limit: None,
        }
    }
}

export_plugin! { threat_model: WhiteBox }

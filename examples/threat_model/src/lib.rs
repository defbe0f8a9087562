//! Logits and labels, no gradients: fgsm is refused, and my_attack leaves my_classifier robust accuracy 45.1 %.
//!
//! cargo build --release
//! advae-host eval --threat-model target/release/libmy_threat_model.so --attack libmy_attack.so --classifier model_d.so

use advae_sdk::prelude::*;

settings! {
    /// What an attacker may spend.
    pub struct Budget {
        /// Label queries, in all; null: without limit.
        queries: Option<u64> = None,
    }
}

struct ScoreBased(Budget);

impl ThreatModel for ScoreBased {
    type Settings = Budget;

    fn new(settings: Budget) -> Result<Self> {
        Ok(Self(settings))
    }

    fn access(&self) -> Access {
        Access {
            target: Target::Pipeline,
            gradients: false,
            logits: true,
            labels: true,
            query_limit: self.0.queries,
        }
    }
}

export_plugin! { threat_model: ScoreBased }

#[cfg(test)]
mod tests;

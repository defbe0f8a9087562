//! The purifier that changes nothing: the control of every experiment.

use advae_sdk::prelude::*;

struct Identity;

impl Purifier for Identity {
    type Settings = NoSettings;
    const THREADING: Threading = Threading::Caller;

    fn new(_: NoSettings, _: &Weights) -> Result<Self> {
        Ok(Self)
    }

    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
}

export_plugin! { purifier: Identity }

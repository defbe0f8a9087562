//! Threat models.

use crate::convert::{import, json, lend, run, to_abi, to_candle};
use crate::remote::RemoteModel;
use crate::settings::Settings;
use advae_abi::abi_stable::sabi_trait::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RString, Tuple2};
use advae_abi::info::{Access, Construct};
use advae_abi::{
    AbiError, AbiResult, AbiThreatModel, AbiThreatModel_TO, CallCtx, CallPhase, CtxRef, Guarded, ModelBox, ServicesBox,
    ThreatModelBox,
};
use advae_nn::Pass;
use candle_core::{Result, Tensor};

/// Says what the attacker knows.
pub trait ThreatModel: Sized + Send + Sync + 'static {
    /// What can be set.
    type Settings: Settings;

    /// Checks the settings.
    ///
    /// # Errors
    /// Where a setting is out of its range; name it, its value and the range.
    fn new(settings: Self::Settings) -> Result<Self>;

    /// Whom the attacker attacks and what it is told. The host builds every oracle from this declaration.
    fn access(&self) -> Access;

    /// Called once a cell, before the attack. A threat model with [`Target::Substitute`](crate::Target::Substitute)
    /// returns the model that is to be attacked in place of the pipeline.
    ///
    /// # Errors
    /// The services', handed on with `?` or `context` so that they keep their code, and those of training.
    fn prepare(&self, _services: &Services) -> Result<Option<RemoteModel>> {
        Ok(None)
    }
}

/// What the host offers while a threat model prepares.
pub struct Services<'a> {
    inner: &'a ServicesBox,
    pass: Pass,
}

impl Services<'_> {
    /// Keys of the preparation's randomness.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// A fresh, randomly initialised classifier of that plugin; an empty name asks for the architecture under attack.
    ///
    /// # Errors
    /// Where there is no such plugin, it is no classifier, or it cannot be trained.
    pub fn fresh_classifier(&self, name: &str, seed: u64) -> Result<RemoteModel> {
        RemoteModel::new(
            self.inner
                .fresh_classifier(name.into(), seed)
                .into_result()
                .map_err(to_candle)?,
        )
    }

    /// Images `[N,C,H,W]` and true labels `[N]` (`i64`) that are kept out of scoring.
    ///
    /// # Errors
    /// Where none were kept.
    pub fn seeds(&self) -> Result<(Tensor, Tensor)> {
        let Tuple2(x, y) = self.inner.seeds().into_result().map_err(to_candle)?;
        Ok((
            import(x.view(), false).map_err(to_candle)?,
            import(y.view(), false).map_err(to_candle)?,
        ))
    }

    /// Labels `[N]` (`i64`) of the whole pipeline for images `[N,C,H,W]`; each image is a query and is metered.
    ///
    /// # Errors
    /// `Denied` without access to labels or beyond the limit of queries, `Cancelled` where the run is to end, and a model's own.
    pub fn labels(&self, x: &Tensor) -> Result<Tensor> {
        let ids: Vec<u64> = (0..x.dim(0)? as u64).collect();
        let ctx = CallCtx::new(self.pass.seed, CallPhase::Craft, &ids);
        let labels = lend(x, |x| self.inner.labels(ctx.lend(&ids), x))?;
        import(labels.view(), false).map_err(to_candle)
    }
}

struct Shim<T>(Guarded<T>);

/// Builds a threat model for the host.
pub(crate) fn boxed<T: ThreatModel>(request: &Construct) -> std::result::Result<ThreatModelBox, AbiError> {
    let threat_model = T::new(crate::settings::parse(&request.config)?).map_err(to_abi)?;
    Ok(AbiThreatModel_TO::from_value(
        Shim(Guarded::new(threat_model)),
        TD_Opaque,
    ))
}

impl<T: ThreatModel> AbiThreatModel for Shim<T> {
    fn access(&self) -> AbiResult<RString> {
        json(|| self.0.access())
    }

    fn prepare(&self, ctx: CtxRef<'_>, services: &ServicesBox) -> AbiResult<ROption<ModelBox>> {
        run(ctx, |pass| {
            let prepared = self.0.prepare(&Services { inner: services, pass })?;
            Ok(prepared.map(RemoteModel::into_inner).into())
        })
    }
}

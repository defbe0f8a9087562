//! Attacks, and what several of them share.
//!
//! | what | for |
//! |---|---|
//! | [`Active`] | the samples of a batch whose search goes on |
//! | [`Best`] | the best image of every sample so far |
//! | [`Boundary`] | the nearest boundary where logits are linear |
//! | [`difference`], [`dlr`], [`dlr_targeted`], [`ranked`], [`others`] | losses beside those of [`Objective`](crate::Objective) |
//! | [`column()`], [`choose`], [`rows`], [`stack`], [`farthest`] | a number, a choice or a row for every sample |
//! | [`cosine`], [`Adam`] | how long a step is |
//!
//! Norms are [`Ball`](crate::Ball)'s. Nothing here lets one sample influence another.

mod active;
mod adam;
mod best;
mod boundary;
mod loss;
mod sample;

pub use active::Active;
pub use adam::{Adam, cosine};
pub use best::Best;
pub use boundary::Boundary;
pub use loss::{difference, dlr, dlr_targeted, others, ranked};
pub use sample::{choose, column, farthest, positions, rows, stack};

use crate::convert::{export_to, import, import_to, json, run, to_abi, to_candle};
use crate::oracle::Oracle;
use crate::settings::Settings;
use advae_abi::abi_stable::sabi_trait::TD_Opaque;
use advae_abi::abi_stable::std_types::{RString, RVec};
use advae_abi::info::{AttackInfo, Construct};
use advae_abi::{
    AbiAttack, AbiAttack_TO, AbiError, AbiResult, AbiTensorRef, AttackBox, CtxRef, DLDevice, Guarded, OracleBox,
};
use candle_core::{Result, Tensor};

/// Looks for adversarial images.
pub trait Attack: Sized + Send + Sync + 'static {
    /// What can be set. An attack within a ball has a setting `epsilon`: the host fills it in and enforces it.
    type Settings: Settings;

    /// Checks the settings.
    ///
    /// # Errors
    /// Where a setting is out of its range; name it, its value and the range.
    fn new(settings: Self::Settings) -> Result<Self>;

    /// Norm, radius, and cost, for the host's budget and progress bar. [`AttackInfo::device`] says whether `perturb` takes images on a GPU: it
    /// makes its tensors on the device of `x` then, and reads values back rarely.
    fn info(&self) -> AttackInfo;

    /// Perturbs clean images `x [N,C,H,W]` with labels `y [N]` (`i64`, on the CPU), sample by sample: no sample may influence
    /// another, and all randomness is keyed by the sample ([`Pass::rng`](crate::Pass::rng)).
    ///
    /// What is returned may exceed epsilon; the host measures and refuses.
    ///
    /// # Errors
    /// The oracle's, handed on with `?` or `context` so that they keep their code, and those of operations.
    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed>;
}

/// What an attack returns.
pub struct Perturbed {
    /// Images `[N,C,H,W]`.
    pub x_adv: Tensor,
    /// Where given: which samples the attack holds for broken. The host scores the clean image of the others.
    pub found: Option<Vec<bool>>,
    /// Labels a targeted attack aimed at.
    pub targets: Option<Vec<u32>>,
}

impl From<Tensor> for Perturbed {
    fn from(x_adv: Tensor) -> Self {
        Self {
            x_adv,
            found: None,
            targets: None,
        }
    }
}

struct Shim<A>(Guarded<A>);

/// Builds an attack for the host.
pub(crate) fn boxed<A: Attack>(request: &Construct) -> std::result::Result<AttackBox, AbiError> {
    crate::convert::device(&request.device)?;
    let attack = A::new(crate::settings::parse(&request.config)?).map_err(to_abi)?;
    Ok(AbiAttack_TO::from_value(Shim(Guarded::new(attack)), TD_Opaque))
}

impl<A: Attack> AbiAttack for Shim<A> {
    fn info(&self) -> AbiResult<RString> {
        json(|| self.0.info())
    }

    fn perturb(
        &self,
        ctx: CtxRef<'_>,
        oracle: &OracleBox,
        x: AbiTensorRef<'_>,
        y: AbiTensorRef<'_>,
    ) -> AbiResult<advae_abi::Perturbed> {
        run(ctx, |_| {
            let oracle = Oracle::new(oracle, ctx).map_err(to_candle)?;
            let x = match x.device() {
                DLDevice::CPU => import(x, false).map_err(to_candle)?,
                _ => import_to(oracle.device(), x, false)?,
            };
            let y = import(y, false).map_err(to_candle)?;
            let out = self.0.perturb(&oracle, &x, &y)?;
            let found = out
                .found
                .unwrap_or_default()
                .into_iter()
                .map(u8::from)
                .collect::<RVec<u8>>();
            Ok(advae_abi::Perturbed {
                x_adv: export_to(ctx, &out.x_adv)?,
                found,
                targets: out.targets.unwrap_or_default().into(),
            })
        })
    }
}

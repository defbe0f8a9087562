//! `export_plugin!`: from one type to a shared library.

use crate::convert::json;
use crate::{Attack, Classifier, Purifier, Settings, ThreatModel};
use advae_abi::abi_stable::std_types::{RStr, RString};
use advae_abi::info::{Construct, Description, Kind};
use advae_abi::{AbiError, AbiResult, AttackBox, ErrorCode, ModelBox, ThreatModelBox, guard};

pub use crate::model::WeightSets;
pub use crate::settings::is_file;

/// Exports one type as the plugin of the crate, under the crate's library name.
///
/// ```ignore
/// export_plugin! { classifier: ModelX, weights: { "clean" => include_bytes!("clean.safetensors") } }
/// export_plugin! { purifier: Denoiser, weights: { "default" => include_bytes!("denoiser.safetensors") } }
/// export_plugin! { classifier: OnnxClassifier, purifier: OnnxPurifier }
/// export_plugin! { attack: Pgd }
/// export_plugin! { threat_model: WhiteBox }
/// ```
///
/// The first weight set is the default. Without any, the network starts from the values that it [gives](advae_nn::Weights::given), else
/// from a seeded initialisation. A file may hold a classifier and a purifier: of the same settings, and without weight sets.
#[macro_export]
macro_rules! export_plugin {
    (classifier: $type:ty $(, weights: { $($set:literal => $bytes:expr),* $(,)? })? $(,)?) => {
        $crate::export_plugin!(@export "classifier", ($($($set),*)?),
            $crate::export_support::describe::<<$type as $crate::Classifier>::Settings>,
            model => $crate::export_support::classifier::<$type>, &[$($(($set, $bytes)),*)?]);
    };
    (purifier: $type:ty $(, weights: { $($set:literal => $bytes:expr),* $(,)? })? $(,)?) => {
        $crate::export_plugin!(@export "purifier", ($($($set),*)?),
            $crate::export_support::describe_purifier::<$type>,
            model => $crate::export_support::purifier::<$type>, &[$($(($set, $bytes)),*)?]);
    };
    (classifier: $classifier:ty, purifier: $purifier:ty $(,)?) => {
        $crate::export_plugin!(@export "classifier", () also "purifier",
            $crate::export_support::describe_both::<$classifier, $purifier>,
            model => $crate::export_support::either::<$classifier, $purifier>, &[]);
    };
    (attack: $type:ty $(,)?) => {
        $crate::export_plugin!(@export "attack", (),
            $crate::export_support::describe::<<$type as $crate::Attack>::Settings>,
            attack => $crate::export_support::attack::<$type>);
    };
    (threat_model: $type:ty $(,)?) => {
        $crate::export_plugin!(@export "threat_model", (),
            $crate::export_support::describe::<<$type as $crate::ThreatModel>::Settings>,
            threat_model => $crate::export_support::threat_model::<$type>);
    };
    (@export $kind:literal, ($($set:literal),*) $(also $also:literal)?, $describe:expr, $($constructor:tt)*) => {
        $crate::abi::export_root! {
            $crate::abi::manifest!(
                kind: $kind,
                name: env!("CARGO_CRATE_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                sdk: $crate::VERSION,
                cuda: $crate::CUDA,
                weight_sets: [$($set),*]
                $(, also: $also)?
            ),
            || {
                use $crate::abi::abi_stable::std_types::{RStr, RString};
                extern "C" fn describe() -> $crate::abi::AbiResult<RString> {
                    $describe()
                }
                $crate::export_plugin!(@constructors $kind, $($constructor)*);
                $crate::abi::Root { describe, new_model, new_attack, new_threat_model }
            }
        }
    };
    (@constructors $kind:literal, model => $build:expr, $sets:expr) => {
        extern "C" fn new_model(request: RStr<'_>) -> $crate::abi::AbiResult<$crate::abi::ModelBox> {
            static SETS: $crate::export_support::WeightSets = $sets;
            $build(request, SETS)
        }
        $crate::export_plugin!(@other new_attack, $crate::abi::AttackBox, $kind, "an attack");
        $crate::export_plugin!(@other new_threat_model, $crate::abi::ThreatModelBox, $kind, "a threat model");
    };
    (@constructors $kind:literal, attack => $build:expr) => {
        extern "C" fn new_attack(request: RStr<'_>) -> $crate::abi::AbiResult<$crate::abi::AttackBox> {
            $build(request)
        }
        $crate::export_plugin!(@other new_model, $crate::abi::ModelBox, $kind, "a model");
        $crate::export_plugin!(@other new_threat_model, $crate::abi::ThreatModelBox, $kind, "a threat model");
    };
    (@constructors $kind:literal, threat_model => $build:expr) => {
        extern "C" fn new_threat_model(request: RStr<'_>) -> $crate::abi::AbiResult<$crate::abi::ThreatModelBox> {
            $build(request)
        }
        $crate::export_plugin!(@other new_model, $crate::abi::ModelBox, $kind, "a model");
        $crate::export_plugin!(@other new_attack, $crate::abi::AttackBox, $kind, "an attack");
    };
    (@other $function:ident, $type:ty, $kind:literal, $asked:literal) => {
        extern "C" fn $function(_request: RStr<'_>) -> $crate::abi::AbiResult<$type> {
            $crate::export_support::other_kind($kind, $asked)
        }
    };
}

/// Settings as the description of the plugin.
///
/// # Errors
/// Where it cannot be written, or the author's code panics.
pub fn describe<S: Settings>() -> AbiResult<RString> {
    json(|| Description {
        settings: crate::settings::describe::<S>(),
        own: vec![],
    })
}

/// The same with those of its own objective.
///
/// # Errors
/// As for [`describe`].
pub fn describe_purifier<P: Purifier>() -> AbiResult<RString> {
    json(|| Description {
        settings: crate::settings::describe::<P::Settings>(),
        own: P::own_settings(),
    })
}

/// Settings of a classifier and a purifier of one file.
///
/// # Errors
/// As for [`describe`].
pub fn describe_both<C: Classifier, P: Purifier<Settings = C::Settings>>() -> AbiResult<RString> {
    describe_purifier::<P>()
}

/// Constructor of the one or the other, as the request has it.
///
/// # Errors
/// As for [`classifier`].
pub fn either<C: Classifier, P: Purifier<Settings = C::Settings>>(
    request: RStr<'_>,
    sets: WeightSets,
) -> AbiResult<ModelBox> {
    let asked = serde_json::from_str::<Construct>(request.as_str());
    match asked.ok().and_then(|asked| asked.kind) {
        Some(Kind::Purifier) => purifier::<P>(request, sets),
        _ => classifier::<C>(request, sets),
    }
}

/// Constructor of a classifier.
///
/// # Errors
/// `Config` for a request, settings or weights that do not fit, `Device` for a device it does not run on, `Panic`.
pub fn classifier<C: Classifier>(request: RStr<'_>, sets: WeightSets) -> AbiResult<ModelBox> {
    construct(request, |request| {
        let settings: C::Settings = crate::settings::parse(&request.config)?;
        crate::model::boxed(request, sets, |weights| {
            C::new(settings.clone(), weights).map(crate::classifier::ClassifierNetwork)
        })
    })
}

/// Constructor of a purifier.
///
/// # Errors
/// As for [`classifier`].
pub fn purifier<P: Purifier>(request: RStr<'_>, sets: WeightSets) -> AbiResult<ModelBox> {
    construct(request, |request| {
        let settings: P::Settings = crate::settings::parse(&request.config)?;
        crate::model::boxed(request, sets, |weights| {
            P::new(settings.clone(), weights).map(crate::purifier::PurifierNetwork)
        })
    })
}

/// Constructor of an attack.
///
/// # Errors
/// As for [`classifier`].
pub fn attack<A: Attack>(request: RStr<'_>) -> AbiResult<AttackBox> {
    construct(request, crate::attack::boxed::<A>)
}

/// Constructor of a threat model.
///
/// # Errors
/// As for [`classifier`].
pub fn threat_model<T: ThreatModel>(request: RStr<'_>) -> AbiResult<ThreatModelBox> {
    construct(request, crate::threat::boxed::<T>)
}

/// Answer of a constructor of another kind.
///
/// # Errors
/// Always `Unsupported`.
pub fn other_kind<T>(kind: &str, asked: &str) -> AbiResult<T> {
    let kind = kind.replace('_', " ");
    guard(|| {
        Err(AbiError::new(
            ErrorCode::Unsupported,
            format!("{asked} was asked of a plugin that brings a {kind}"),
        ))
    })
}

fn construct<T>(request: RStr<'_>, build: impl FnOnce(&Construct) -> Result<T, AbiError>) -> AbiResult<T> {
    guard(|| {
        let request: Construct = serde_json::from_str(request.as_str())
            .map_err(|e| AbiError::new(ErrorCode::Config, format!("the request is not readable: {e}")))?;
        build(&request)
    })
}

#[cfg(test)]
mod tests;

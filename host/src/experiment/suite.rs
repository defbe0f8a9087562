//! Suites: several attacks under one name. AutoAttack (Croce & Hein 2020) runs its stages one after the other, each on the samples
//! that the ones before left standing.

use crate::plugin::PluginSpec;
use crate::results::Stage;
use advae_abi::info::WeightSource;
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};

/// Draws that the version for random defences averages gradients over.
const RAND_EOT: u64 = 20;

/// The suite's name, which no plugin can take.
const AUTOATTACK: &str = "autoattack";

/// One attack of a suite.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSpec {
    /// The attack.
    pub spec: PluginSpec,
    /// Its place in the suite; what it comes after is known when cells are laid out.
    pub stage: Stage,
    /// Whether it attacks only what the stage before left standing, where the scored defence itself is attacked.
    pub on_survivors: bool,
    /// Least number of draws its gradients are averaged over, behind a random defence.
    pub eot: u64,
}

/// An attack by the name that the field knows a preset of another by: `bim` (Kurakin et al. 2017) is `pgd:preset=bim`.
pub fn preset(spec: PluginSpec) -> PluginSpec {
    const BIM: &str = "bim";
    if spec.name != BIM || spec.config.contains_key("preset") {
        return spec;
    }
    let mut config = spec.config;
    config.insert("preset".into(), BIM.into());
    PluginSpec::new("pgd", spec.weights, config)
}

/// The stages of a suite; none where the spec names a plugin.
///
/// # Errors
/// Where the suite does not know a setting or its value.
pub fn stages(spec: &PluginSpec, classes: usize) -> Result<Option<Vec<StageSpec>>> {
    if spec.name != AUTOATTACK {
        return Ok(None);
    }
    ensure!(
        spec.weights == WeightSource::Default,
        "'{AUTOATTACK}' is a suite of attacks and has no weights: leave '@' away"
    );
    let known = ["version", "norm", "epsilon"];
    if let Some(key) = spec.config.keys().find(|key| !known.contains(&key.as_str())) {
        bail!(
            "{AUTOATTACK}: unknown setting '{key}': its settings are {}",
            known.join(", ")
        );
    }
    let version = match spec.config.get("version") {
        None => "standard",
        Some(Value::String(version)) => version,
        Some(other) => bail!("{AUTOATTACK}: version is {other}, expected standard or rand"),
    };
    let Version {
        attacks,
        on_survivors,
        eot,
    } = Version::of(version, classes)?;
    let of = attacks.len();
    let shared: Setting = ["norm", "epsilon"]
        .into_iter()
        .filter_map(|key| Some((key, spec.config.get(key)?.clone())))
        .collect();
    let stage = |(i, (name, settings)): (usize, (&str, Setting))| {
        let settings = settings.into_iter().chain(shared.clone());
        let config: Map<String, Value> = settings.map(|(key, value)| (key.into(), value)).collect();
        StageSpec {
            spec: PluginSpec::new(name, WeightSource::Default, config),
            stage: Stage {
                suite: spec.label(),
                number: i + 1,
                of,
                after: None,
            },
            on_survivors,
            eot,
        }
    };
    Ok(Some(attacks.into_iter().enumerate().map(stage).collect()))
}

/// Settings of one attack.
type Setting = Vec<(&'static str, Value)>;

/// A version of AutoAttack.
struct Version {
    attacks: Vec<(&'static str, Setting)>,
    on_survivors: bool,
    eot: u64,
}

impl Version {
    fn of(name: &str, classes: usize) -> Result<Self> {
        let targeted = ("n_target_classes", json!(classes.saturating_sub(1).min(9)));
        match name {
            "standard" => {
                ensure!(
                    classes >= 4,
                    "{AUTOATTACK}: its targeted loss needs 4 classes at least, the dataset has {classes}: name its attacks one by one \
                     (--attack apgd --attack fab:targeted=false --attack square)"
                );
                let attacks = vec![
                    ("apgd", vec![("loss", json!("ce"))]),
                    ("apgd", vec![("loss", json!("dlr_targeted")), targeted.clone()]),
                    ("fab", vec![("targeted", json!(true)), targeted]),
                    ("square", vec![("n_queries", json!(5000))]),
                ];
                Ok(Self {
                    attacks,
                    on_survivors: true,
                    eot: 1,
                })
            }
            "rand" => Ok(Self {
                attacks: vec![
                    ("apgd", vec![("loss", json!("ce"))]),
                    ("apgd", vec![("loss", json!("dlr"))]),
                ],
                on_survivors: false,
                eot: RAND_EOT,
            }),
            other => bail!("{AUTOATTACK}: version is '{other}', expected standard or rand"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, classes: usize) -> Result<Vec<String>> {
        let stages = stages(&PluginSpec::parse(text)?, classes)?.unwrap_or_default();
        Ok(stages.iter().map(|stage| stage.spec.label()).collect())
    }

    #[test]
    fn the_standard_version_is_four_attacks_on_survivors() {
        let labels = of("autoattack:epsilon=0.1", 10).unwrap();
        assert_eq!(
            labels,
            [
                "apgd:epsilon=0.1,loss=ce",
                "apgd:epsilon=0.1,loss=dlr_targeted,n_target_classes=9",
                "fab:epsilon=0.1,n_target_classes=9,targeted=true",
                "square:epsilon=0.1,n_queries=5000"
            ]
        );
        let all = stages(&PluginSpec::parse("autoattack").unwrap(), 5).unwrap().unwrap();
        assert!(
            all.iter()
                .all(|stage| stage.on_survivors && stage.eot == 1 && stage.stage.of == 4)
        );
        assert_eq!(all[1].spec.config["n_target_classes"], 4);
    }

    #[test]
    fn the_version_for_random_defences_averages_gradients_and_stages_nothing() {
        let all = stages(&PluginSpec::parse("autoattack:version=rand").unwrap(), 10)
            .unwrap()
            .unwrap();
        let told: Vec<_> = all
            .iter()
            .map(|stage| (stage.spec.label(), stage.on_survivors, stage.eot))
            .collect();
        assert_eq!(
            told,
            [("apgd:loss=ce".into(), false, 20), ("apgd:loss=dlr".into(), false, 20)]
        );
    }

    #[test]
    fn a_preset_goes_by_the_name_it_is_known_by() {
        let named = |text: &str| preset(PluginSpec::parse(text).unwrap()).to_string();
        assert_eq!(named("bim:steps=5"), "pgd:preset=bim,steps=5");
        assert_eq!(named("pgd:steps=5"), "pgd:steps=5");
    }

    #[test]
    fn what_it_does_not_know_is_refused_and_plugins_are_no_suites() {
        let refused = |text: &str, classes| of(text, classes).unwrap_err().to_string();
        assert!(
            refused("autoattack:steps=3", 10)
                .contains("unknown setting 'steps': its settings are version, norm, epsilon")
        );
        assert!(refused("autoattack:version=plus", 10).contains("version is 'plus', expected standard or rand"));
        assert!(refused("autoattack:version=1", 10).contains("version is 1, expected standard or rand"));
        assert!(refused("autoattack@w", 10).contains("has no weights"));
        assert!(refused("autoattack", 3).contains("needs 4 classes"));
        assert_eq!(stages(&PluginSpec::parse("apgd").unwrap(), 10).unwrap(), None);
    }
}

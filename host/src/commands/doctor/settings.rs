//! Construction: settings, weights, device.

use super::checklist::{Checklist, Finding};
use super::patient::Patient;
use crate::plugin::files;
use crate::terminal::console;
use crate::wire::attack::Attack;
use crate::wire::model::Model;
use crate::wire::threat::ThreatModel;
use advae_abi::info::{Construct, Kind, Setting};
use anyhow::Result;

/// A setting that no plugin has.
const NONSENSE: &str = "no_such_setting";

/// Constructs the plugin as asked, and in ways it has to refuse.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    list.check("construction", || {
        construct(patient, &patient.request)?;
        let settings = &patient.plugin.description.settings;
        let value = |s: &Setting| files::as_given(patient.request.config.get(&s.name).unwrap_or(&s.default)).clone();
        let listed = settings.iter().map(|s| format!("{} = {}", s.name, value(s)));
        let listed = listed.collect::<Vec<_>>().join(", ");
        let settings = if listed.is_empty() {
            "no settings".into()
        } else {
            listed
        };
        Ok(Finding::Pass(settings))
    })?;
    unknown_setting(list, patient)?;
    foreign_device(list, patient)
}

fn construct(patient: &Patient, request: &Construct) -> Result<()> {
    match patient.kind() {
        Kind::Classifier | Kind::Purifier => Model::construct(&patient.plugin, request).map(drop),
        Kind::Attack => Attack::construct(&patient.plugin, request.config.clone()).map(drop),
        Kind::ThreatModel => ThreatModel::construct(&patient.plugin, request.config.clone()).map(drop),
    }
}

fn unknown_setting(list: &mut Checklist, patient: &Patient) -> Result<()> {
    list.check("unknown setting", || {
        let mut request = patient.request.clone();
        request.config.insert(NONSENSE.into(), 1.into());
        let Err(error) = construct(patient, &request) else {
            let text = "it was accepted: refuse what is not known, a misspelt setting would go unnoticed";
            return Ok(Finding::Fail(text.into()));
        };
        let text = console::one_line(&error);
        let named = text.contains(NONSENSE);
        Ok(Finding::hope(named, format!("refused: {text}"), "name the setting"))
    })
}

fn foreign_device(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let model = matches!(patient.kind(), Kind::Classifier | Kind::Purifier);
    if patient.plugin.manifest.cuda || !model {
        return Ok(());
    }
    list.check("device", || {
        let request = Construct {
            device: "cuda:0".into(),
            ..patient.request.clone()
        };
        Ok(match construct(patient, &request) {
            Ok(()) => Finding::Fail("cuda:0 was accepted by a build for the cpu: answer with an error".into()),
            Err(error) => Finding::Pass(format!("cuda:0 is refused: {}", console::one_line(&error))),
        })
    })
}

//! Buffers that the host lends for a call: a plugin reads them and leaves them as they are. Every call lends copies and compares them
//! afterwards, so that this check is the first pass, and told apart from whatever else goes wrong with one.

use super::checklist::{Checklist, Finding};
use super::sample::{IDS, images, input, signed};
use crate::terminal::console;
use crate::wire::boundary::wrote;
use crate::wire::model::Model;
use crate::wire::tensor::Call;
use anyhow::Result;

/// Whether a first pass leaves what it was lent as it was. False where it did not: nothing else can be tried then.
pub fn examine(list: &mut Checklist, pass: impl FnOnce() -> Result<()>) -> Result<bool> {
    let mut whole = true;
    list.check("lent buffers", || match pass() {
        Err(error) if wrote(&error) => {
            whole = false;
            let text = console::one_line(&error);
            Ok(Finding::Fail(format!("{text}; the other checks are left out")))
        }
        other => other.map(|()| Finding::Pass("left as they were".into())),
    })?;
    Ok(whole)
}

/// A model's passes, forward and back.
pub fn there_and_back(model: &Model) -> Result<()> {
    let (call, x) = (Call::craft(0, &IDS[..3]), images(3, input(model)));
    model.forward(&call, &x)?;
    let (y, tape) = model.forward_tape(&call, &x)?;
    tape.backward(&call, &signed(&y.shape, 2)).map(drop)
}

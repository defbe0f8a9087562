//! Buffers that the host lends for a call: a plugin reads them and leaves them as they are.

use super::checklist::{Checklist, Finding};
use super::model::input;
use super::sample::{IDS, images, signed};
use crate::wire::model::Model;
use crate::wire::tensor::{Call, Tensor};
use anyhow::Result;
use std::hint::black_box;

/// Name of the check.
pub const CHECK: &str = "lent buffers";

/// Images and ids to lend, and what they hold.
pub struct Lent {
    /// Images `[N,C,H,W]`.
    pub x: Tensor,
    /// Sample ids, on the heap: a constant lies in memory where a plugin that writes would end the process.
    pub ids: Vec<u64>,
    kept: (Tensor, Vec<u64>),
}

impl Lent {
    /// Copies of these.
    pub fn new(x: &Tensor, ids: &[u64]) -> Self {
        Self {
            x: x.clone(),
            ids: ids.to_vec(),
            kept: (x.clone(), ids.to_vec()),
        }
    }

    /// What was written into since, in words.
    pub fn written(&self) -> Option<&'static str> {
        let (x, ids) = &self.kept;
        match (same(x, &self.x), ids == black_box(&self.ids)) {
            (false, _) => Some("the images"),
            (_, false) => Some("the sample ids"),
            _ => None,
        }
    }
}

/// Bit by bit.
fn same(kept: &Tensor, lent: &Tensor) -> bool {
    let bits = |t: &Tensor| black_box(&t.data).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    bits(kept) == bits(lent)
}

/// A pass forward and back over buffers that are watched. False where one was written into: nothing else can be tried then.
pub fn examine(list: &mut Checklist, model: &Model) -> Result<bool> {
    let mut whole = true;
    list.check(CHECK, || {
        let written = watch(model)?;
        whole = written.is_none();
        Ok(finding(written))
    })?;
    Ok(whole)
}

/// `written`: what was written into, in words.
pub fn finding(written: Option<String>) -> Finding {
    match written {
        None => Finding::Pass("left as they were".into()),
        Some(what) => Finding::Fail(format!(
            "it wrote into {what}: copy what the host lends before changing it; the other checks are left out"
        )),
    }
}

fn watch(model: &Model) -> Result<Option<String>> {
    let lent = Lent::new(&images(3, input(model)), &IDS[..3]);
    let call = Call::craft(0, &lent.ids);
    let during = |what: &str, call: &str| format!("{what} that {call} was lent");
    model.forward(&call, &lent.x)?;
    if let Some(what) = lent.written() {
        return Ok(Some(during(what, "forward")));
    }
    let (y, tape) = model.forward_tape(&call, &lent.x)?;
    if let Some(what) = lent.written() {
        return Ok(Some(during(what, "forward_tape")));
    }
    let cotangent = signed(&y.shape, 2);
    let kept = cotangent.clone();
    tape.backward(&call, &cotangent)?;
    let what = match same(&kept, &cotangent) {
        false => Some("the cotangent"),
        true => lent.written(),
    };
    Ok(what.map(|what| during(what, "backward")))
}

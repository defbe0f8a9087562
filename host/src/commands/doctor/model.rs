//! Forward passes of classifiers and purifiers.

use super::checklist::{Checklist, Finding};
use super::patient::Patient;
use super::sample::{IDS, images, input, scale};
use super::{lending, memory, saturation};
use crate::wire::model::{Model, ask, looks_like_probabilities};
use crate::wire::tensor::{Call, Tensor, difference};
use advae_abi::ErrorCode;
use advae_abi::info::{Kind, ModelInfo};
use anyhow::Result;

/// Relative deviation up to which two sums of the same numbers in another order are the same.
const ROUNDING: f64 = 1e-5;

/// What a purifier has to list.
const BACKWARD_RULES: &str = "it lists no backward rules: list `Exact` where it is differentiable, else `Identity` (BPDA), `Custom` or `None`, the \
     default first";

/// Checks what can be seen without gradients. False where nothing else can be tried with this model.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<bool> {
    let model = Model::construct(&patient.plugin, &patient.request)?;
    if !lending::examine(list, || lending::there_and_back(&model))? {
        return Ok(false);
    }
    list.check("description", || Ok(description(&model)))?;
    if model.info().parameters > 0 && model.info().weights.starts_with("init:") {
        list.check("untrained", || Ok(untrained(&model)))?;
    }
    list.check("shapes", || shapes(&model))?;
    list.check("values", || values(&model))?;
    if model.kind() == Kind::Classifier {
        list.check("logits", || saturation::examine(&model))?;
    }
    list.check("determinism", || determinism(&model))?;
    list.check("random flag", || random_flag(&model))?;
    list.check("batch", || batch(&model))?;
    list.check("threads", || threads(&model))?;
    list.check("memory", || memory::examine(patient, &model))?;
    list.check("wrong input", || wrong_input(patient, input(&model)))?;
    Ok(true)
}

fn description(model: &Model) -> Finding {
    let ModelInfo {
        classes,
        bounds,
        parameters,
        weights,
        threading,
        backward_rules,
        ..
    } = model.info();
    let classes = classes.map(|k| format!(", {k} classes")).unwrap_or_default();
    let weights = if weights.is_empty() { "none" } else { weights };
    let text = format!(
        "images {:?}{classes}, {parameters} parameters, weights {weights}, threading {threading:?}",
        input(model)
    );
    if *bounds != [0., 1.] {
        return Finding::Fail(format!("{text}, bounds {bounds:?}: this host's pixels lie in [0, 1]"));
    }
    let ruled = model.kind() == Kind::Classifier || !backward_rules.is_empty();
    Finding::expect(ruled, text, BACKWARD_RULES)
}

fn untrained(model: &Model) -> Finding {
    let name = model.name();
    Finding::Warn(format!(
        "its weights are a seeded initialisation ({}): a trained network may behave otherwise, its gradient above all; \
         name weights, {name}@SET or {name}@FILE.safetensors",
        model.info().weights
    ))
}

fn shapes(model: &Model) -> Result<Finding> {
    let batches = [1, 2, 5];
    for n in batches {
        model.forward(&Call::score(0, &IDS[..n]), &images(n, input(model)))?;
    }
    Ok(Finding::Pass(format!("as promised for batches of {batches:?}")))
}

/// Black, white and grey; and logits that are no probabilities.
fn values(model: &Model) -> Result<Finding> {
    let [c, h, w] = input(model);
    let flat = |value: f32| Tensor {
        shape: vec![1, c, h, w],
        data: vec![value; c * h * w],
    };
    for value in [0., 0.5, 1.] {
        model.forward(&Call::score(0, &IDS[..1]), &flat(value))?;
    }
    let y = model.forward(&Call::score(0, &IDS), &images(IDS.len(), input(model)))?;
    let probabilities = model.kind() == Kind::Classifier && looks_like_probabilities(&y);
    let text = match probabilities {
        true => "every row of the output adds up to 1".to_string(),
        false => format!("finite, up to {:.3}", scale(&y)),
    };
    Ok(Finding::expect(
        !probabilities,
        text,
        "return logits, not probabilities",
    ))
}

fn determinism(model: &Model) -> Result<Finding> {
    let (call, x) = (Call::score(5, &IDS), images(IDS.len(), input(model)));
    let deviation = difference(&model.forward(&call, &x)?, &model.forward(&call, &x)?);
    let text = match deviation {
        0. => "the same call gives the same bits".to_string(),
        other => format!("the same call twice differs by {other:.3e}"),
    };
    let advice = "key all randomness by seed, sample id, draw and phase, and keep no state";
    Ok(Finding::expect(deviation == 0., text, advice))
}

fn random_flag(model: &Model) -> Result<Finding> {
    let x = images(IDS.len(), input(model));
    let first = model.forward(&Call::score(5, &IDS), &x)?;
    let other_draw = model.forward(&Call::score(5, &IDS).with_draw(1), &x)?;
    let other_seed = model.forward(&Call::score(6, &IDS), &x)?;
    let crafting = model.forward(&Call::craft(5, &IDS), &x)?;
    let moves = [other_draw, other_seed, crafting].map(|y| difference(&first, &y) > 0.);
    Ok(match (model.info().random, moves) {
        (false, [false, false, false]) => Finding::Pass("not random, as it says".into()),
        (false, _) => Finding::Fail(
            "it says it is not random, but draw, seed or phase change its output: set random in its info".into(),
        ),
        (true, [true, true, true]) => Finding::Pass("random, as it says, over draws, seeds and phases".into()),
        (true, [draw, seed, phase]) => Finding::Warn(format!(
            "it says it is random; its output moves with the draw: {draw}, seed: {seed}, phase: {phase}: \
             key the randomness by all three"
        )),
    })
}

fn batch(model: &Model) -> Result<Finding> {
    let x = images(IDS.len(), input(model));
    let together = model.forward(&Call::score(5, &IDS), &x)?;
    let mut worst = 0f64;
    for i in 0..IDS.len() {
        let alone = model.forward(&Call::score(5, &IDS[i..=i]), &x.select(&[i]))?;
        worst = worst.max(difference(&alone, &together.select(&[i])));
    }
    Ok(same_rows(worst, scale(&together), "a row alone and in a batch of 7"))
}

fn threads(model: &Model) -> Result<Finding> {
    let (call, x) = (Call::score(5, &IDS), images(IDS.len(), input(model)));
    let (one, four) = (model.forward(&call, &x)?, model.forward(&call.with_threads(4), &x)?);
    Ok(same_rows(difference(&one, &four), scale(&one), "1 thread and 4"))
}

/// Bits, rounding, or a failure.
pub fn same_rows(deviation: f64, scale: f64, between: &str) -> Finding {
    match deviation / scale {
        0. => Finding::Pass(format!("{between} give the same bits")),
        relative => Finding::expect(
            relative <= ROUNDING,
            format!("{between} differ by {deviation:.3e}, {relative:.1e} of the largest value"),
            "treat every sample by itself",
        ),
    }
}

/// Images one column too wide are an error; a panic is survived, but says little to whoever reads it.
fn wrong_input(patient: &Patient, [c, h, w]: [usize; 3]) -> Result<Finding> {
    // Not through `Model`, which would refuse the shape itself.
    let model = ask(&patient.plugin, &patient.request)?;
    let (x, call) = (images(2, [c, h, w + 1]), Call::score(0, &IDS[..2]));
    let (dims, ctx) = (x.dims(), call.context());
    let any = patient.kind() == Kind::Purifier;
    Ok(match model.forward(ctx.lend(call.ids), x.lend(&dims)).into_result() {
        Ok(_) if any => Finding::Pass("images of another width are purified too".into()),
        Ok(_) => Finding::Fail(format!("images {:?} were accepted: check the shape", x.shape)),
        Err(error) => Finding::hope(
            !error.is(ErrorCode::Panic),
            format!("images {:?} are refused: {error}", x.shape),
            "check the shape and answer with an error",
        ),
    })
}

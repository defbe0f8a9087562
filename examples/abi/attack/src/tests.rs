use super::*;

#[test]
fn its_cotangent_is_the_derivative_of_its_loss() {
    let logits = [0.3f32, -1.2, 2.0, 0.1, 0.2, 0.4];
    let labels = [2, 0];
    let loss = |logits: &[f32]| {
        let of_row = |(row, label): (&[f32], &i64)| {
            let label = *label as usize;
            let others = row.iter().enumerate().filter(|(i, _)| *i != label);
            others.map(|(_, z)| z.exp()).sum::<f32>().ln() - row[label]
        };
        logits.chunks_exact(3).zip(&labels).map(of_row).sum::<f32>()
    };
    let derivative = cotangent(&logits, &labels);
    for i in 0..logits.len() {
        let mut moved = logits;
        moved[i] += 0.01;
        let difference = (loss(&moved) - loss(&logits)) / 0.01;
        assert!(
            (difference - derivative[i]).abs() < 0.01,
            "{i}: {difference} {}",
            derivative[i]
        );
    }
}

#[test]
fn a_setting_out_of_its_range_is_refused() {
    let refused = new_attack(r#"{"config": {"epsilon": 2}, "weights": "default", "device": "cpu"}"#.into());
    assert!(
        refused
            .into_result()
            .err()
            .unwrap()
            .to_string()
            .contains("'epsilon' is 2")
    );
}

use super::*;

#[test]
fn it_grants_logits_and_no_gradients() {
    let access = ScoreBased.access().into_result().unwrap();
    let access: Access = serde_json::from_str(&access).unwrap();
    assert!(access.logits && access.labels && !access.gradients);
}

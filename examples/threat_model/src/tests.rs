use super::*;

#[test]
fn scores_are_granted_and_gradients_are_not() {
    let access = ScoreBased::new(Budget { queries: Some(5) }).unwrap().access();
    assert!(access.logits && access.labels && !access.gradients);
    assert_eq!(access.query_limit, Some(5));
}

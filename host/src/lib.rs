//! The advae host: loads plugins, runs the evaluation, scores, trains, audits.

//! Datasets for advae: the embedded mnist-1k sample, IDX files, npz.

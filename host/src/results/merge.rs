//! Several results files as one.

use super::read::Records;
use super::record::Row;
use anyhow::{Result, bail};
use std::collections::HashMap;

/// The cells of all files, those of one key joined.
///
/// # Errors
/// Where two files contradict each other about a sample.
pub fn merge(all: Vec<Records>) -> Result<Records> {
    let mut merged = Records::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for records in all {
        merged.runs.extend(records.runs);
        for cell in records.cells {
            let Some(at) = places.get(&cell.header.key) else {
                places.insert(cell.header.key.clone(), merged.cells.len());
                merged.cells.push(cell);
                continue;
            };
            let known = &mut merged.cells[*at];
            // Times are those of one run where one has all samples, not of several that were measured beside each other.
            let whole = cell.rows.len() > known.rows.len() && known.rows.keys().all(|id| cell.rows.contains_key(id));
            let mut rows = cell.rows;
            if whole {
                std::mem::swap(&mut known.rows, &mut rows);
            }
            for (id, row) in rows {
                match known.rows.get(&id) {
                    Some(other) if !same(other, &row) => bail!(
                        "two files contradict each other about sample {id} of cell '{}': report them one by one",
                        known.header.key
                    ),
                    Some(_) => {}
                    None => drop(known.rows.insert(id, row)),
                }
            }
            known.header.samples = known.header.samples.max(cell.header.samples).max(known.rows.len());
            known.header.plain = known.header.plain.max(cell.header.plain);
            known.images.extend(cell.images);
            known.pictures.extend(cell.pictures);
            known.substitute = known.substitute.or(cell.substitute);
            known.check = known.check.or(cell.check);
            known.failed = known.failed.take().filter(|_| known.rows.len() < known.header.samples);
        }
    }
    Ok(merged)
}

/// Whether two measurements of a sample came to one result, whenever they were made.
fn same(a: &Row, b: &Row) -> bool {
    Row { at: 0., ..a.clone() } == Row { at: 0., ..b.clone() }
}

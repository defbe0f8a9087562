//! The process with the plugins: it plans and measures what it is asked for, and keeps nothing.

use super::messages::{Heard, Reply, Request, chain, heard, said};
use super::plan::{Plan, plan};
use super::run::{Apart, Session, measure};
use super::settings::Settings;
use crate::isolation::{Channel, channel};
use crate::results::{Collector, Line};
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// Serves the process that started this one until it closes the standard input. Returns the exit code.
///
/// # Errors
/// Where this process was started by hand, or is asked for what it does not know.
pub fn serve() -> Result<i32> {
    let channel = channel().context("this command is for the host itself: run eval")?;
    let cancel = Cancel::on_request()?;
    let (mut planned, mut known) = (None, Collector::default());
    for line in std::io::stdin().lines() {
        let line = line?;
        let reply = match heard(&line)? {
            Heard::Result => {
                known.take(Line::read(&line)?)?;
                continue;
            }
            Heard::Message(Request::Plan { settings, again }) => {
                known = Collector::default();
                console::hush(again);
                let plan = plan(&settings);
                console::hush(false);
                plan.map(|plan| {
                    let headers = plan.groups.iter();
                    let headers = headers.map(|group| group.cells.iter().map(|(header, _)| header.clone()).collect());
                    let reply = Reply::Planned(headers.collect());
                    planned = Some((settings, plan));
                    reply
                })
            }
            Heard::Message(Request::Measure { failed }) => {
                let (settings, plan) = planned.take().context("nothing was planned")?;
                let known = std::mem::take(&mut known);
                measured(channel, known, &settings, &plan, &failed, &cancel)
            }
        };
        channel.send(&said(&reply.unwrap_or_else(|error| Reply::Refused(chain(&error))))?);
    }
    Ok(0)
}

fn measured(
    channel: &'static Channel,
    known: Collector,
    settings: &Settings,
    plan: &Plan,
    failed: &BTreeMap<String, String>,
    cancel: &Cancel,
) -> Result<Reply> {
    let session = Session::for_parent(channel, known.into_records());
    let begins = |group| {
        if let Ok(line) = said(&Reply::Begins(group)) {
            channel.send(&line);
        }
    };
    let apart = Apart {
        failed,
        begins: &begins,
    };
    let outcome = measure(&session, settings, plan, cancel, &apart)?;
    Ok(Reply::Finished {
        trouble: outcome.trouble,
    })
}

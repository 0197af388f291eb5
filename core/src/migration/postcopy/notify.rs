//! What is told at the target of a postcopy's steps, and may stop it: a device that another process serves, say.
//!
//! ```text
//!   ADVISE ──▶ Probe    can it be done here? nothing of the machine has come
//!   RAM's list ▶ Advise  its blocks are known, all of their memory was given back
//!   LISTEN ──▶ Listen   pages are waited for from here on; the source stands still, and runs on if this is refused
//!   the end ─▶ End      all of it came │ it was not needed │ it failed: to each that was told anything, once, whatever happens
//! ```
//!
//! Called in the order in which they were added, on the thread that reads the stream, with no lock held. The first that refuses ends the
//! step: those behind it are told of the end alone, if they were told anything.

use crate::missing::MissingPages;
use core::fmt;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All pages are here, and the machine runs here.
    Complete,
    /// All of it came before the machine ran: no page was waited for.
    NotUsed,
    /// Pages that are missing never come.
    Failed,
}

/// A step of a postcopy at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The source may come to it. Nothing of the machine has come: what cannot take part says so.
    Probe,
    /// The blocks are known, and given back.
    Advise,
    /// Pages are waited for. What is told of this must not wait for one: none is read before it returns.
    Listen,
    /// It is over. A refusal of [`Outcome::Complete`] cannot take the machine back to its source: the arrival has failed then, and runs.
    End(Outcome),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Probe => "probe",
            Moment::Advise => "advise",
            Moment::Listen => "listen",
            Moment::End(_) => "end",
        })
    }
}

/// What is told.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Notice<'n> {
    /// Which step.
    pub moment: Moment,
    /// The pages, once the blocks are known.
    pub pages: Option<&'n Arc<MissingPages>>,
}

/// What a call may answer.
pub type Answered = Result<(), Box<dyn Error + Send + Sync>>;

type Call = dyn Fn(&Notice<'_>) -> Answered + Send + Sync;

struct Entry {
    name: String,
    call: Box<Call>,
}

/// A step was refused.
#[derive(Debug, thiserror::Error)]
#[error("{by} refuses postcopy ({moment}): {why}")]
pub struct Refusal {
    /// By the one with this name.
    pub by: String,
    /// Which.
    pub moment: Moment,
    /// Why.
    pub why: Box<dyn Error + Send + Sync>,
}

/// What is told of postcopies; clones share one list.
///
/// ```
/// use notdirty_core::migration::postcopy::{Inbound, Moment, Notice, Notifiers, Outcome};
///
/// let notifiers = Notifiers::default();
/// let guard = notifiers.add("net0", |notice: &Notice<'_>| match notice.moment {
///     Moment::Probe => Err("its process has no userfaultfd".into()),
///     _ => Ok(()),
/// });
/// let mut inbound = Inbound::new(&notifiers);
/// let why = inbound.tell(Moment::Probe, None).unwrap_err();
/// assert_eq!(why.to_string(), "net0 refuses postcopy (probe): its process has no userfaultfd");
/// drop(guard); // it is told nothing any more
/// assert!(inbound.tell(Moment::Probe, None).is_ok());
/// ```
#[derive(Clone, Default)]
pub struct Notifiers(Arc<Mutex<Vec<Arc<Entry>>>>);

/// It is told of postcopies as long as this is there; a call that is under way ends by itself.
#[must_use = "dropped, nothing is told"]
pub struct NotifierGuard {
    list: Notifiers,
    entry: Arc<Entry>,
}

impl Notifiers {
    /// This is called at each step of a postcopy that comes here; an error stops it. `name` is for that error.
    pub fn add(
        &self,
        name: impl Into<String>,
        call: impl Fn(&Notice<'_>) -> Answered + Send + Sync + 'static,
    ) -> NotifierGuard {
        let entry = Arc::new(Entry { name: name.into(), call: Box::new(call) });
        self.list().push(entry.clone());
        NotifierGuard { list: self.clone(), entry }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, entry: &Arc<Entry>) -> bool {
        self.list().iter().any(|other| Arc::ptr_eq(other, entry))
    }
}

impl Drop for NotifierGuard {
    fn drop(&mut self) {
        self.list.list().retain(|other| !Arc::ptr_eq(other, &self.entry));
    }
}

impl fmt::Debug for Notifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list().iter().map(|entry| &entry.name)).finish()
    }
}

impl fmt::Debug for NotifierGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NotifierGuard").field(&self.entry.name).finish()
    }
}

/// The steps of one postcopy. Dropped before [`end`](Self::end), it has failed.
#[derive(Default)]
pub struct Inbound {
    notifiers: Notifiers,
    /// What was told of a step, in this order.
    told: Vec<Arc<Entry>>,
    pages: Option<Arc<MissingPages>>,
}

impl Inbound {
    /// Of those that are in this list when a step comes.
    pub fn new(notifiers: &Notifiers) -> Inbound {
        Inbound { notifiers: notifiers.clone(), told: Vec::new(), pages: None }
    }

    /// Tells all of them of a step, or up to the first that refuses.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn tell(&mut self, moment: Moment, pages: Option<&Arc<MissingPages>>) -> Result<(), Refusal> {
        if let Some(pages) = pages {
            self.pages = Some(pages.clone());
        }
        let all = self.notifiers.list().clone();
        for entry in all.iter().filter(|entry| self.notifiers.has(entry)) {
            if !self.told.iter().any(|other| Arc::ptr_eq(other, entry)) {
                self.told.push(entry.clone());
            }
            entry.call(moment, self.pages.as_ref())?;
        }
        Ok(())
    }

    /// It is over: tells those that were told anything, once. All of them, also behind one that refuses.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn end(&mut self, outcome: Outcome) -> Result<(), Refusal> {
        let mut done = Ok(());
        for entry in core::mem::take(&mut self.told) {
            if self.notifiers.has(&entry) {
                done = done.and(entry.call(Moment::End(outcome), self.pages.as_ref()));
            }
        }
        self.pages = None;
        done
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Err(why) = self.end(Outcome::Failed) {
            log::warn!("{why}");
        }
    }
}

impl Entry {
    fn call(&self, moment: Moment, pages: Option<&Arc<MissingPages>>) -> Result<(), Refusal> {
        (self.call)(&Notice { moment, pages }).map_err(|why| Refusal { by: self.name.clone(), moment, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn each_is_told_in_order_up_to_the_one_that_refuses_and_those_that_were_told_hear_the_end_once() {
        let (list, (to, told)) = (Notifiers::default(), channel());
        let guards: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .map(|name| {
                let to = to.clone();
                list.add(name, move |notice| {
                    to.send(format!("{name} {}", notice.moment)).unwrap();
                    if name == "b" && matches!(notice.moment, Moment::Listen | Moment::End(Outcome::NotUsed)) {
                        return Err("not so".into());
                    }
                    Ok(())
                })
            })
            .collect();
        let said = || told.try_iter().collect::<Vec<_>>().join(", ");
        let mut inbound = Inbound::new(&list);
        inbound.tell(Moment::Probe, None).unwrap();
        assert_eq!(said(), "a probe, b probe, c probe");
        let why = inbound.tell(Moment::Listen, None).unwrap_err();
        assert_eq!((why.to_string().as_str(), why.moment), ("b refuses postcopy (listen): not so", Moment::Listen));
        assert_eq!(said(), "a listen, b listen");
        drop(inbound);
        assert_eq!(said(), "a end, b end, c end");

        let mut inbound = Inbound::new(&list);
        assert!(inbound.tell(Moment::Listen, None).is_err());
        said();
        // c was told nothing; a refusal of the end stops no other.
        let why = inbound.end(Outcome::NotUsed).unwrap_err();
        assert_eq!((why.by.as_str(), said().as_str()), ("b", "a end, b end"));
        drop(inbound);
        assert_eq!(said(), "", "once");

        // One that is gone is told nothing, one that came later what comes.
        let mut inbound = Inbound::new(&list);
        inbound.tell(Moment::Probe, None).unwrap();
        drop(guards);
        let own = to.clone();
        let _late = list.add("d", move |notice| Ok(own.send(format!("d {}", notice.moment))?));
        said();
        inbound.tell(Moment::Advise, None).unwrap();
        inbound.end(Outcome::Complete).unwrap();
        assert_eq!(said(), "d advise, d end");
    }
}

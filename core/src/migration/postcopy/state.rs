//! The target's states.
//!
//! ```text
//!   NONE ──advise──▶ ADVISE ──discard──▶ DISCARD ⟲ ──listen──▶ LISTENING ──run──▶ RUNNING ──end──▶ END
//!     │                 └───────────────listen─────────────────▲               resume ⟲
//!     └─end (a precopy)─▶ END ◀─end (it was not used)── ADVISE
//! ```

use super::super::wire::Fault;
use core::fmt;

/// Where a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing was said of postcopy.
    #[default]
    None,
    /// It may come to it.
    Advise,
    /// The source stands still, and says what is yet to come.
    Discard,
    /// Missing pages are waited for; the machine does not run yet.
    Listening,
    /// It runs.
    Running,
    /// All pages are there.
    End,
}

/// What leads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// ADVISE.
    Advise,
    /// RAM_DISCARD.
    Discard,
    /// LISTEN.
    Listen,
    /// RUN.
    Run,
    /// RECV_BITMAP or RESUME, on a new channel.
    Resume,
    /// The end of the stream.
    End,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::None => "NONE",
            State::Advise => "ADVISE",
            State::Discard => "DISCARD",
            State::Listening => "LISTENING",
            State::Running => "RUNNING",
            State::End => "END",
        })
    }
}

impl State {
    /// Where it leads to.
    ///
    /// # Errors
    /// [`Fault::Order`] with the state's name: not from here.
    pub fn after(self, step: Step) -> Result<State, Fault> {
        match (self, step) {
            (State::None, Step::Advise) => Ok(State::Advise),
            (State::Advise | State::Discard, Step::Discard) => Ok(State::Discard),
            (State::Advise | State::Discard, Step::Listen) => Ok(State::Listening),
            (State::Listening, Step::Run) => Ok(State::Running),
            (State::Running, Step::Resume) => Ok(State::Running),
            (State::None | State::Advise | State::Running, Step::End) => Ok(State::End),
            (state, step) => Err(Fault::Order(format!("{step:?} in the state {state} of postcopy"))),
        }
    }

    /// Whether pages may be waited for.
    pub fn is_fetching(self) -> bool {
        matches!(self, State::Listening | State::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] =
        [State::None, State::Advise, State::Discard, State::Listening, State::Running, State::End];
    const STEPS: [Step; 6] = [Step::Advise, Step::Discard, Step::Listen, Step::Run, Step::Resume, Step::End];

    #[test]
    fn each_step_from_each_state_leads_on_or_is_refused_by_the_states_name() {
        // A row a state, a column a step: where it leads to.
        let table = ["1.....", ".23...", ".23...", "...4..", "....45", "......"];
        // End, too, from where nothing is missing.
        let ends = [State::None, State::Advise, State::Running];
        for (state, row) in STATES.into_iter().zip(table) {
            for (step, to) in STEPS.into_iter().zip(row.chars()) {
                let to = if step == Step::End && ends.contains(&state) { Some(5) } else { to.to_digit(10) };
                match (state.after(step), to) {
                    (Ok(now), Some(to)) => assert_eq!(now, STATES[to as usize], "{state} {step:?}"),
                    (Err(why), None) => assert!(why.to_string().contains(&format!("the state {state} ")), "{why}"),
                    (found, to) => panic!("{state} {step:?}: {found:?}, {to:?}"),
                }
            }
        }
    }
}

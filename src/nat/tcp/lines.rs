//! The connections that have something for their guests, in line: one line for each port, which take turns.

use std::collections::{HashMap, VecDeque};

use super::Id;
use crate::switch::PortId;

#[derive(Debug, Default)]
struct Line {
    ids: VecDeque<Id>,
    /// Whether its guest has no room.
    is_stalled: bool,
    takes_turns: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<PortId, Line>,
    turns: VecDeque<PortId>,
}

impl Lines {
    /// Whether there is any that can have a turn.
    pub(super) fn has_any(&self) -> bool {
        !self.turns.is_empty()
    }

    /// A connection joins its line, in which it must not be already.
    pub(super) fn join(&mut self, port: PortId, id: Id) {
        let line = self.lines.entry(port).or_default();
        line.ids.push_back(id);
        if !line.is_stalled && !std::mem::replace(&mut line.takes_turns, true) {
            self.turns.push_back(port);
        }
    }

    /// The first of the next line, which leaves it.
    pub(super) fn next(&mut self) -> Option<Id> {
        loop {
            let port = self.turns.pop_front()?;
            let Some(line) = self.lines.get_mut(&port) else { continue };
            let id = line.ids.pop_front();
            line.takes_turns = !line.ids.is_empty() && !line.is_stalled;
            if line.takes_turns {
                self.turns.push_back(port);
            }
            if id.is_some() {
                return id;
            }
        }
    }

    /// A port's guest has no room: its line waits.
    pub(super) fn stall(&mut self, port: PortId) {
        self.lines.entry(port).or_default().is_stalled = true;
        self.turns.retain(|other| *other != port);
        if let Some(line) = self.lines.get_mut(&port) {
            line.takes_turns = false;
        }
    }

    /// A port's guest may have room again.
    pub(super) fn go_on(&mut self, port: PortId) {
        let Some(line) = self.lines.get_mut(&port).filter(|line| line.is_stalled) else { return };
        line.is_stalled = false;
        if !line.ids.is_empty() && !std::mem::replace(&mut line.takes_turns, true) {
            self.turns.push_back(port);
        }
    }

    /// All may have.
    pub(super) fn all_go_on(&mut self) {
        let ports: Vec<PortId> = self.lines.keys().copied().collect();
        ports.into_iter().for_each(|port| self.go_on(port));
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.lines.remove(&port);
        self.turns.retain(|other| *other != port);
    }
}

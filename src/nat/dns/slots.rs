//! Places for things that come and go, which tokens name.

use super::super::id::Id;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    thing: Option<Box<T>>,
}

/// Things by their place; a place that is used again has another generation.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// How many things there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, thing: T) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, thing: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.thing = Some(Box::new(thing));
        Id { index, generation: slot.generation }
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.thing.as_deref_mut()
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Box<T>> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let thing = slot.thing.take()?;
        slot.generation = Id::next_generation(slot.generation);
        self.free.push(id.index);
        Some(thing)
    }

    /// The ids of those that `wanted` wants.
    pub(super) fn find(&self, wanted: impl Fn(&T) -> bool) -> Vec<Id> {
        let id = |(index, slot): (u32, &Slot<T>)| {
            let thing = slot.thing.as_ref()?;
            wanted(thing).then_some(Id { index, generation: slot.generation })
        };
        (0..).zip(&self.slots).filter_map(id).collect()
    }
}

//! A frontend's memory regions, checked before anything is mapped.

use std::os::fd::OwnedFd;

use super::message::Message;
use crate::sys::fd;

/// Regions that a table may have: what `vhost-user-backend` reports as its memory slots.
pub const REGIONS_MAX: usize = 509;
/// Bytes of memory that a port may have: 4 TiB. All ports share the 128 TiB of this process's address space, and a file
/// may be any size without taking any memory.
pub const MEMORY_BYTES_MAX: u64 = 1 << 42;
/// Bytes of one region's description.
const REGION_LEN: usize = 32;
/// Bytes before the first region of SET_MEM_TABLE: the count and padding; and of the messages about one: padding.
const TABLE_HEADER_LEN: usize = 8;

/// What to add where the frontend's memory is not shared with us.
pub const NOT_SHARED: &str = "the guest's memory is not shared with us; \
    QEMU: add `-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem`; \
    cloud-hypervisor: add `shared=on` to --memory";

/// One region as the frontend describes it. All fields in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// Size.
    pub size: u64,
    /// Address in the frontend's own memory, by which it names rings.
    pub user: u64,
    /// Where the region starts in its file.
    pub offset: u64,
}

impl Region {
    fn read(message: &Message, at: usize) -> Self {
        Self {
            guest: message.u64_at(at),
            size: message.u64_at(at + 8),
            user: message.u64_at(at + 16),
            offset: message.u64_at(at + 24),
        }
    }

    /// Checks what the region says of itself, and that its file really has it.
    fn check(&self, file: &OwnedFd) -> Result<(), String> {
        let Self { guest, size, user, offset } = *self;
        if size == 0 {
            return Err(format!("the memory region at {guest:#x} has a size of zero"));
        }
        let end = offset.checked_add(size).filter(|_| guest.checked_add(size).is_some());
        let Some(end) = end.filter(|_| user.checked_add(size).is_some() && usize::try_from(size).is_ok()) else {
            return Err(format!("the memory region at {guest:#x} of {size:#x} bytes wraps around"));
        };
        let at_region = |why: String| format!("the memory region at {guest:#x}: {why}");
        let file = fd::shareable(file).map_err(at_region)?;
        let whole_pages = offset.is_multiple_of(file.page) && (file.is_small() || size.is_multiple_of(file.page));
        if !whole_pages {
            let what = format!("{size:#x} bytes from {offset:#x} of its file are not whole pages of {:#x}", file.page);
            return Err(at_region(what));
        }
        if end > file.len {
            return Err(format!(
                "the memory region at {guest:#x} needs {end:#x} bytes of a file that has {:#x}",
                file.len
            ));
        }
        tracing::debug!("memory region of {size:#x} bytes at {guest:#x}, sealed against shrinking: {}", file.keeps_len);
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: u64, b: u64| a < b + other.size && b < a + self.size;
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }
}

/// The regions that are in force, and how often each was added.
///
/// QEMU before 8.0 adds and removes every region once for each queue pair of a device. The first time and the last
/// count.
#[derive(Debug, Default)]
pub struct MemoryTable {
    regions: Vec<(Region, u32)>,
}

impl MemoryTable {
    /// Whether there is no memory yet.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Replaces the table by what SET_MEM_TABLE says. Trims the message to its regions: User Mode Linux before 6.12
    /// sends a body of fixed length.
    pub fn set(&mut self, message: &mut Message) -> Result<(), String> {
        let count = message.u32_at(0) as usize;
        if count == 0 || message.fds.is_empty() {
            return Err(NOT_SHARED.to_owned());
        }
        let len = TABLE_HEADER_LEN + count.min(REGIONS_MAX + 1) * REGION_LEN;
        if count > REGIONS_MAX || message.body.len() < len {
            return Err(format!("a table of {count} regions in {} bytes", message.body.len()));
        }
        if message.fds.len() != count {
            return Err(format!("{count} memory regions with {} descriptors", message.fds.len()));
        }
        let mut table = Self::default();
        for (i, file) in message.fds.iter().enumerate() {
            table.insert(Region::read(message, TABLE_HEADER_LEN + i * REGION_LEN), file)?;
        }
        message.body.truncate(len);
        *self = table;
        Ok(())
    }

    /// Adds the region of ADD_MEM_REG. Returns whether it is new.
    pub fn add(&mut self, message: &Message) -> Result<bool, String> {
        let region = Self::single(message)?;
        if let Some((_, added)) = self.regions.iter_mut().find(|(known, _)| *known == region) {
            *added = added.saturating_add(1);
            return Ok(false);
        }
        match message.fds.as_slice() {
            [] => Err(NOT_SHARED.to_owned()),
            _ if self.regions.len() == REGIONS_MAX => Err(format!("more than {REGIONS_MAX} memory regions")),
            [file] => self.insert(region, file).map(|()| true),
            several => Err(format!("one memory region with {} descriptors", several.len())),
        }
    }

    /// Removes the region of REM_MEM_REG, which is named by its addresses and size. Returns whether it is gone.
    pub fn remove(&mut self, message: &Message) -> Result<bool, String> {
        let region = Self::single(message)?;
        let same = |r: &Region| (r.guest, r.size, r.user) == (region.guest, region.size, region.user);
        let Some(index) = self.regions.iter().position(|(known, _)| same(known)) else {
            return Err(format!("there is no memory region of {:#x} bytes at {:#x}", region.size, region.guest));
        };
        let added = &mut self.regions[index].1;
        *added -= 1;
        let gone = *added == 0;
        if gone {
            self.regions.remove(index);
        }
        Ok(gone)
    }

    /// The guest physical address of `len` bytes at the frontend's address `user`, if one region holds them all.
    pub fn translate(&self, user: u64, len: u64) -> Option<u64> {
        let (region, _) = self.regions.iter().find(|(r, _)| user >= r.user && user - r.user < r.size)?;
        let offset = user - region.user;
        (len <= region.size - offset).then(|| region.guest + offset)
    }

    fn single(message: &Message) -> Result<Region, String> {
        if message.body.len() != TABLE_HEADER_LEN + REGION_LEN {
            return Err(format!("a memory region in {} bytes", message.body.len()));
        }
        Ok(Region::read(message, TABLE_HEADER_LEN))
    }

    fn insert(&mut self, region: Region, file: &OwnedFd) -> Result<(), String> {
        region.check(file)?;
        if let Some((other, _)) = self.regions.iter().find(|(other, _)| region.overlaps(other)) {
            return Err(format!("the memory regions at {:#x} and {:#x} overlap", other.guest, region.guest));
        }
        let total = self.regions.iter().fold(region.size, |sum, (other, _)| sum.saturating_add(other.size));
        if total > MEMORY_BYTES_MAX {
            return Err(format!("{total:#x} bytes of memory; a port may have {MEMORY_BYTES_MAX:#x}"));
        }
        self.regions.push((region, 1));
        Ok(())
    }
}

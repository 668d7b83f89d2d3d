//! The thread that answers: CRIU, faults and events, the holder. It never waits for anything but all of them.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::content::Buffer;
use super::crew::Crew;
use super::holder::HolderLink;
use super::outstanding::Outstanding;
use super::space::Space;
use super::wire::{Figures, FromCriu, FromHolder, ToHolder};
use crate::monotonic_us;

/// Between two attempts at a fault that events were in the way of.
const DEFERRED: Duration = Duration::from_millis(1);

/// Between two looks at what nobody has called for.
const LOOK_ANYWAY: Duration = Duration::from_millis(500);

/// What is missing of each process that CRIU is about to restore, and which areas its children do not get.
pub type Planned = HashMap<u32, (Outstanding, Arc<Vec<Range<u64>>>)>;

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// All memory is there.
    Complete(Figures),
    /// CRIU went away before it had restored everything.
    Aborted,
}

/// One restore.
pub struct Session<'a> {
    crew: &'a Crew,
    planned: Planned,
    criu: Option<OwnedFd>,
    /// Bytes of a message of CRIU's that has not arrived whole, and the process whose descriptor is awaited.
    partial: Vec<u8>,
    awaited: Option<u32>,
    holder: &'a mut HolderLink,
    woken: UnixStream,
    next_number: u32,
    deferred: Vec<(Arc<Space>, u64)>,
    /// Spaces that the holder was asked to let go, until when it may take.
    releasing: HashMap<u32, Instant>,
    restored_at: Option<Instant>,
    figures: Figures,
    buffer: Buffer,
}

/// Who has something to say.
#[derive(Default)]
struct Ready {
    criu: bool,
    holder: bool,
    spaces: Vec<Arc<Space>>,
}

impl<'a> Session<'a> {
    pub fn new(
        crew: &'a Crew,
        planned: Planned,
        criu: OwnedFd,
        holder: &'a mut HolderLink,
        woken: UnixStream,
    ) -> Self {
        Self {
            crew,
            planned,
            criu: Some(criu),
            partial: Vec::new(),
            awaited: None,
            holder,
            woken,
            next_number: 0,
            deferred: Vec::new(),
            releasing: HashMap::new(),
            restored_at: None,
            figures: Figures::default(),
            buffer: Buffer::new(),
        }
    }

    /// Until every page is there, or CRIU has gone away early. `restored` is called once, when tasks are about to run.
    pub fn run(mut self, mut restored: impl FnMut()) -> io::Result<Ended> {
        loop {
            let ready = self.wait()?;
            if ready.criu && !self.hear_criu(&mut restored)? {
                return Ok(Ended::Aborted);
            }
            if ready.holder {
                self.hear_holder()?;
            }
            for space in ready.spaces {
                self.serve(&space)?;
            }
            self.answer_deferred()?;
            if let Some(reason) = self.crew.failure() {
                return Err(io::Error::other(reason));
            }
            if self.finish_spaces()? {
                return Ok(Ended::Complete(self.sum()));
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let spaces = self.crew.all();
        let mut watched = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        let criu = self.criu.as_ref().map(AsFd::as_fd);
        let holder = self.holder.socket();
        let (has_criu, has_holder) = (criu.is_some(), holder.is_some());
        watched.extend(criu.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        watched.extend(holder.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        watched.extend(
            spaces
                .iter()
                .map(|space| PollFd::new(space.uffd().as_fd(), PollFlags::POLLIN)),
        );
        let timeout = match self.deferred.is_empty() {
            true => LOOK_ANYWAY,
            false => DEFERRED,
        };
        match poll(
            &mut watched,
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events: Vec<bool> = watched.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut events = events.into_iter();
        let mut next = |there: bool| there && events.next() == Some(true);
        let woken = next(true);
        let mut ready = Ready {
            criu: next(has_criu),
            holder: next(has_holder),
            spaces: Vec::new(),
        };
        ready.spaces = spaces.into_iter().filter(|_| next(true)).collect();
        if woken {
            let mut bytes = [0; 64];
            // It does not block; whatever is read, everything is looked at below.
            let _ = self.woken.read(&mut bytes);
        }
        Ok(ready)
    }

    /// Takes a message of CRIU's; false if it has given up.
    fn hear_criu(&mut self, restored: &mut impl FnMut()) -> io::Result<bool> {
        let Some(socket) = &self.criu else {
            return Ok(true);
        };
        let mut bytes = [0_u8; 4];
        let wanted = if self.awaited.is_some() {
            1
        } else {
            4 - self.partial.len()
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut bytes[..wanted])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptor = descriptors.next().and_then(|mut rights| rights.next());
        if length == 0 {
            self.criu = None;
            return Ok(self.restored_at.is_some());
        }
        if let Some(process) = self.awaited.take() {
            let uffd =
                descriptor.ok_or_else(|| io::Error::other("CRIU sent no userfaultfd with a process"))?;
            self.begin(process, uffd)?;
            return Ok(true);
        }
        self.partial.extend(&bytes[..length]);
        let Ok(word) = <[u8; 4]>::try_from(self.partial.as_slice()) else {
            return Ok(true);
        };
        self.partial.clear();
        match FromCriu::of(word) {
            Some(FromCriu::Process(process)) => self.awaited = Some(process),
            Some(FromCriu::Zombie) => {}
            Some(FromCriu::Finished) => {
                self.restored_at = Some(Instant::now());
                self.crew.set_restored();
                restored();
            }
            None => {
                return Err(io::Error::other(format!(
                    "CRIU sent {word:?}, which is no process"
                )));
            }
        }
        Ok(true)
    }

    /// A process's memory can be filled from now on.
    fn begin(&mut self, process: u32, uffd: OwnedFd) -> io::Result<()> {
        let (missing, not_inherited) = self.planned.remove(&process).ok_or_else(|| {
            io::Error::other(format!("CRIU restores process {process}, which has no image"))
        })?;
        self.keep(process, uffd, missing, Some(not_inherited))
    }

    /// The holder has it before anybody fills anything.
    fn keep(
        &mut self,
        process: u32,
        uffd: OwnedFd,
        missing: Outstanding,
        not_inherited: Option<Arc<Vec<Range<u64>>>>,
    ) -> io::Result<()> {
        let number = self.next_number;
        self.next_number += 1;
        self.holder.keep(number, &uffd)?;
        self.figures.processes += 1;
        let space = Space::new(number, process, uffd, missing, not_inherited);
        self.crew.add(Arc::new(space));
        Ok(())
    }

    /// Takes and answers everything that a process waits for.
    fn serve(&mut self, space: &Arc<Space>) -> io::Result<()> {
        loop {
            let taken = space.take_events(&self.crew.content)?;
            if !taken.any {
                return Ok(());
            }
            let seen_us = monotonic_us();
            for (uffd, missing) in taken.children {
                self.keep(space.process, uffd, missing, None)?;
            }
            for address in taken.faults {
                self.answer(space, address, seen_us)?;
            }
        }
    }

    fn answer(&mut self, space: &Arc<Space>, address: u64, seen_us: u64) -> io::Result<()> {
        match space.answer(&self.crew.content, address, &mut self.buffer)? {
            Some(true) => self.figures.faults += 1,
            Some(false) => self.figures.zero_faults += 1,
            None => self.deferred.push((Arc::clone(space), address)),
        }
        let took_us = monotonic_us().saturating_sub(seen_us);
        self.figures.slowest_fault_us = self.figures.slowest_fault_us.max(took_us);
        Ok(())
    }

    fn answer_deferred(&mut self) -> io::Result<()> {
        for (space, address) in std::mem::take(&mut self.deferred) {
            self.serve(&space)?;
            self.answer(&space, address, monotonic_us())?;
        }
        Ok(())
    }

    /// Lets go of processes that are complete; true when all are.
    fn finish_spaces(&mut self) -> io::Result<bool> {
        if self.restored_at.is_none() {
            return Ok(false);
        }
        let now = Instant::now();
        let mut left = 0;
        for space in self.crew.all() {
            if !space.is_complete() {
                left += 1;
                continue;
            }
            if self.holder.socket().is_none() {
                self.crew.remove(space.number);
                continue;
            }
            left += 1;
            match self.releasing.get(&space.number) {
                None => {
                    self.holder.tell(&ToHolder::Release(space.number), Vec::new())?;
                    self.releasing.insert(space.number, HolderLink::deadline());
                }
                Some(deadline) if *deadline <= now => {
                    return Err(io::Error::other("the holder does not answer"));
                }
                Some(_) => {}
            }
        }
        Ok(left == 0)
    }

    fn hear_holder(&mut self) -> io::Result<()> {
        if let Some(FromHolder::Released(number)) = self.holder.receive()? {
            self.releasing.remove(&number);
            self.crew.remove(number);
        }
        Ok(())
    }

    fn sum(&self) -> Figures {
        let fill = self
            .restored_at
            .map(|at| u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
        Figures {
            hot_bytes: self.crew.hot_bytes.load(Ordering::Relaxed),
            filled_bytes: self.crew.cold_bytes.load(Ordering::Relaxed),
            given_back_bytes: self.crew.content.given_back_bytes(),
            fill_us: fill.unwrap_or_default(),
            ..self.figures
        }
    }
}

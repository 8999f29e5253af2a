//! A stack machine. Its code is in its memory, from address 0 on: an operation is a byte, and those
//! with an argument have eight more.

use std::fmt;

/// A memory that grows. (An engine for WebAssembly asks for the same: where it is, how large it is, how
/// large it may become, and that it grows in place.)
pub(crate) trait Memory {
    /// Bytes that may be accessed.
    fn size(&self) -> usize;
    fn grow_to(&mut self, size: usize) -> Result<(), Trap>;
    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N], Trap>;
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Trap>;
}

/// Why a program was stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trap {
    OutOfBounds(usize),
    OutOfMemory,
    EmptyStack,
    NoSuchOperation(u8),
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds(at) => write!(f, "access out of bounds, at {at:#x}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::EmptyStack => f.write_str("the stack is empty"),
            Self::NoSuchOperation(code) => write!(f, "no such operation: {code}"),
        }
    }
}

impl std::error::Error for Trap {}

/// What the machine can do. Operands come from the stack, the last first.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Op {
    Halt,
    /// Pushes the argument.
    Push,
    /// Pushes the number, or the byte, at an address.
    Load,
    LoadByte,
    /// Takes an address and a number, or a byte, and stores it there.
    Store,
    StoreByte,
    Add,
    /// Pushes 1 if the one below is less than the one on top.
    Less,
    /// Goes on at the argument; or does so if it takes a zero.
    Jump,
    JumpIfZero,
    /// Makes sure that so many bytes may be accessed.
    Grow,
}

const OPS: [Op; 11] = [
    Op::Halt,
    Op::Push,
    Op::Load,
    Op::LoadByte,
    Op::Store,
    Op::StoreByte,
    Op::Add,
    Op::Less,
    Op::Jump,
    Op::JumpIfZero,
    Op::Grow,
];

impl Op {
    /// Whether eight bytes follow.
    pub(crate) fn has_argument(self) -> bool {
        matches!(self, Self::Push | Self::Jump | Self::JumpIfZero)
    }
}

/// A program that runs.
pub(crate) struct Machine<'a, M> {
    memory: &'a mut M,
    stack: Vec<u64>,
    at: usize,
}

impl<'a, M: Memory> Machine<'a, M> {
    /// Runs what is at address 0 until it halts.
    pub(crate) fn run(memory: &'a mut M) -> Result<(), Trap> {
        let mut machine = Self { memory, stack: Vec::new(), at: 0 };
        while machine.step()? {}
        Ok(())
    }

    fn step(&mut self) -> Result<bool, Trap> {
        let [code] = self.memory.read(self.at)?;
        let op = *OPS.get(usize::from(code)).ok_or(Trap::NoSuchOperation(code))?;
        self.at += 1;
        let mut argument = 0;
        if op.has_argument() {
            argument = u64::from_ne_bytes(self.memory.read(self.at)?);
            self.at += 8;
        }
        match op {
            Op::Halt => return Ok(false),
            Op::Push => self.stack.push(argument),
            Op::Load => {
                let at = self.pop()? as usize;
                self.stack.push(u64::from_ne_bytes(self.memory.read(at)?));
            }
            Op::LoadByte => {
                let at = self.pop()? as usize;
                let [byte] = self.memory.read(at)?;
                self.stack.push(u64::from(byte));
            }
            Op::Store => {
                let (number, at) = (self.pop()?, self.pop()? as usize);
                self.memory.write(at, number.to_ne_bytes())?;
            }
            Op::StoreByte => {
                let (byte, at) = (self.pop()? as u8, self.pop()? as usize);
                self.memory.write(at, [byte])?;
            }
            Op::Add => {
                let (b, a) = (self.pop()?, self.pop()?);
                self.stack.push(a.wrapping_add(b));
            }
            Op::Less => {
                let (b, a) = (self.pop()?, self.pop()?);
                self.stack.push(u64::from(a < b));
            }
            Op::Jump => self.at = argument as usize,
            Op::JumpIfZero => {
                if self.pop()? == 0 {
                    self.at = argument as usize;
                }
            }
            Op::Grow => {
                let size = self.pop()? as usize;
                if size > self.memory.size() {
                    self.memory.grow_to(size)?;
                }
            }
        }
        Ok(true)
    }

    fn pop(&mut self) -> Result<u64, Trap> {
        self.stack.pop().ok_or(Trap::EmptyStack)
    }
}

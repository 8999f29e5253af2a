//! The program, its data, and what it should answer.
//!
//! It counts the primes below a number by a sieve, in memory that it asks for; looks a number up in a
//! table of secrets and overwrites it there; and counts how often it was called.

use crate::machine::Op;

/// Addresses of its variables: input, output, and what it needs in between.
pub(crate) const N: usize = 0x1000;
pub(crate) const SLOT: usize = 0x1008;
pub(crate) const PRIMES: usize = 0x1010;
pub(crate) const SECRET: usize = 0x1018;
pub(crate) const CALLS: usize = 0x1020;
const I: usize = 0x1028;
const J: usize = 0x1030;

/// The table of secrets, and the sieve after it, which is no part of the image.
const TABLE: usize = 0x10000;
const SECRETS: usize = 1 << 17;
const SIEVE: usize = TABLE + 8 * SECRETS;

/// What a request asks: primes below which number, and where in the table it looks (in bytes).
pub(crate) fn input_of(request: u64) -> (u64, u64) {
    (100 + request * 37 % 1000, request * 7919 % SECRETS as u64 * 8)
}

/// What a request should be answered.
pub(crate) fn answer(n: u64, slot: u64) -> (u64, u64) {
    let is_prime = |it: &u64| (2..*it).take_while(|d| d * d <= *it).all(|d| !it.is_multiple_of(d));
    ((2..n).filter(is_prime).count() as u64, secret(slot / 8))
}

fn secret(index: u64) -> u64 {
    index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// Program and data.
pub(crate) fn image() -> Vec<u8> {
    let mut image = vec![0; SIEVE];
    let code = program();
    image[..code.len()].copy_from_slice(&code);
    for (index, place) in image[TABLE..].chunks_exact_mut(8).enumerate() {
        place.copy_from_slice(&secret(index as u64).to_ne_bytes());
    }
    image
}

/// Code in the making. A place to jump to is a number; where it is, is known in the end.
#[derive(Default)]
struct Assembler {
    code: Vec<u8>,
    places: Vec<usize>,
    jumps: Vec<(usize, usize)>,
}

impl Assembler {
    fn op(&mut self, op: Op) -> &mut Self {
        self.code.push(op as u8);
        self
    }

    fn push(&mut self, number: usize) -> &mut Self {
        self.op(Op::Push).code.extend((number as u64).to_ne_bytes());
        self
    }

    /// Pushes a variable.
    fn get(&mut self, variable: usize) -> &mut Self {
        self.push(variable).op(Op::Load)
    }

    /// Jumps to a place that may be yet to come.
    fn jump(&mut self, op: Op, place: usize) -> &mut Self {
        self.op(op);
        self.jumps.push((self.code.len(), place));
        self.code.extend([0; 8]);
        self
    }

    fn place(&mut self, place: usize) -> &mut Self {
        self.places.resize(self.places.len().max(place + 1), 0);
        self.places[place] = self.code.len();
        self
    }

    /// `variable += what is pushed between`.
    fn add_to(&mut self, variable: usize, push: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        push(self.push(variable).get(variable)).op(Op::Add).op(Op::Store)
    }

    fn finish(mut self) -> Vec<u8> {
        for (at, place) in self.jumps {
            self.code[at..at + 8].copy_from_slice(&(self.places[place] as u64).to_ne_bytes());
        }
        self.code
    }
}

fn program() -> Vec<u8> {
    let [numbers, multiples, next, end] = [0, 1, 2, 3];
    let mut asm = Assembler::default();
    asm.add_to(CALLS, |asm| asm.push(1));
    // The secret, which nobody finds there any more.
    asm.push(SECRET).push(TABLE).get(SLOT).op(Op::Add).op(Op::Load).op(Op::Store);
    asm.push(TABLE).get(SLOT).op(Op::Add).push(0).op(Op::Store);
    // The sieve: a byte for each number, zero if nothing divides it.
    asm.push(SIEVE).get(N).op(Op::Add).op(Op::Grow);
    asm.push(I).push(2).op(Op::Store);
    asm.place(numbers).get(I).get(N).op(Op::Less).jump(Op::JumpIfZero, end);
    asm.push(SIEVE).get(I).op(Op::Add).op(Op::LoadByte);
    asm.push(1).op(Op::Less).jump(Op::JumpIfZero, next);
    asm.add_to(PRIMES, |asm| asm.push(1));
    asm.push(J).get(I).get(I).op(Op::Add).op(Op::Store);
    asm.place(multiples).get(J).get(N).op(Op::Less).jump(Op::JumpIfZero, next);
    asm.push(SIEVE).get(J).op(Op::Add).push(1).op(Op::StoreByte);
    asm.add_to(J, |asm| asm.get(I)).jump(Op::Jump, multiples);
    asm.place(next).add_to(I, |asm| asm.push(1)).jump(Op::Jump, numbers);
    asm.place(end).op(Op::Halt);
    asm.finish()
}

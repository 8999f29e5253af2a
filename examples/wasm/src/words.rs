//! The words that the guest knows, and what is asked of it.

/// How many words it is taught.
pub const WORDS: u64 = 1 << 18;

/// A word of five to ten letters, another for each number below 2^23.
pub fn word(number: u64) -> String {
    let mut rest = number.wrapping_mul(0x9E_3779) % (1 << 23);
    let mut letter = || {
        let it = char::from(b'a' + (rest % 26) as u8);
        rest /= 26;
        it
    };
    let begin: String = (0..5).map(|_| letter()).collect();
    begin + &"ation"[..(number % 6) as usize]
}

/// The words of a request: some dozens, few of which are most of all texts. `None` are unknown ones.
pub fn request(number: u64) -> Vec<Option<u64>> {
    let mut state = number;
    let mut random = || {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let count = 16 + random() % 48;
    let mut draw = || {
        let part = (random() >> 11) as f64 / (1u64 << 53) as f64;
        let number = (part.powi(6) * WORDS as f64) as u64;
        (!random().is_multiple_of(16)).then_some(number)
    };
    (0..count).map(|_| draw()).collect()
}

/// The text of a request.
pub fn text(words: &[Option<u64>]) -> String {
    let words = words.iter().map(|it| it.map_or("Unheard-of".into(), word));
    words.collect::<Vec<_>>().join(" ")
}

//! Logging in, for preflight: it tells a wrong password from a wrong port. PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677).

use openssl::base64::{decode_block, encode_block};
use openssl::hash::{MessageDigest, hash};
use openssl::pkcs5::pbkdf2_hmac;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use crate::config::SaslMechanism;

/// One log-in on its way.
pub(super) struct Dialogue {
    mechanism: SaslMechanism,
    username: String,
    password: String,
    nonce: String,
    is_proven: bool,
}

impl Dialogue {
    pub(super) fn new(mechanism: SaslMechanism, username: &str, password: &str) -> Self {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        Self { mechanism, username: username.to_owned(), password: password.to_owned(), nonce, is_proven: false }
    }

    pub(super) fn first(&self) -> Vec<u8> {
        match self.mechanism {
            SaslMechanism::Plain => format!("\0{}\0{}", self.username, self.password).into_bytes(),
            SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512 => format!("n,,{}", self.bare()).into_bytes(),
        }
    }

    fn bare(&self) -> String {
        format!("n={},r={}", self.username.replace('=', "=3D").replace(',', "=2C"), self.nonce)
    }

    /// What follows an answer; `None`: nothing, we are in. The server's own proof is not checked: nothing is sent or read
    /// on this connection that a false server could use.
    pub(super) fn next(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
        if self.mechanism == SaslMechanism::Plain || self.is_proven {
            return Ok(None);
        }
        self.is_proven = true;
        let answer = String::from_utf8_lossy(answer).into_owned();
        self.proof(&answer).map(Some).ok_or_else(|| "the broker's answer is not SCRAM's".to_owned())
    }

    fn proof(&self, challenge: &str) -> Option<Vec<u8>> {
        let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let (nonce, salt) = (field("r")?, decode_block(field("s")?).ok()?);
        let rounds: usize = field("i")?.parse().ok().filter(|rounds| (1..=1_000_000).contains(rounds))?;
        if !nonce.starts_with(&self.nonce) {
            return None;
        }
        let digest = match self.mechanism {
            SaslMechanism::ScramSha256 => MessageDigest::sha256(),
            _ => MessageDigest::sha512(),
        };
        let mut salted = vec![0; digest.size()];
        pbkdf2_hmac(self.password.as_bytes(), &salt, rounds, digest, &mut salted).ok()?;
        let key = hmac(digest, &salted, b"Client Key")?;
        let stored = hash(digest, &key).ok()?;
        let last = format!("c=biws,r={nonce}");
        let signature = hmac(digest, &stored, format!("{},{challenge},{last}", self.bare()).as_bytes())?;
        let proof: Vec<u8> = key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        Some(format!("{last},p={}", encode_block(&proof)).into_bytes())
    }
}

fn hmac(digest: MessageDigest, key: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let key = PKey::hmac(key).ok()?;
    let mut signer = Signer::new(digest, &key).ok()?;
    signer.update(text).ok()?;
    signer.sign_to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_comes_out() {
        let mut dialogue = Dialogue::new(SaslMechanism::ScramSha256, "user", "pencil");
        dialogue.nonce = "rOprNGfwEbeRWgbNEkqO".into();
        assert_eq!(dialogue.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = dialogue.next(challenge).expect("SCRAM").expect("a proof");
        let expected =
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8_lossy(&proof), expected);
        assert_eq!(dialogue.next(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(None));
    }

    #[test]
    fn an_answer_to_somebody_else_is_refused() {
        for answer in ["", "r=x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "e=unknown-user", "r=,s=,i=0"] {
            let mut dialogue = Dialogue::new(SaslMechanism::ScramSha512, "a,b=c", "p");
            assert!(dialogue.first().starts_with(b"n,,n=a=2Cb=3Dc,r="));
            assert!(dialogue.next(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}

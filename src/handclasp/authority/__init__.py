"""Authorities: their keys, their certificates, what they sign, and their revocation lists.

What happens here: keys are kept encrypted in files or behind PKCS#11 (`keystore`, `hsm`, `passphrase`), a planned certificate is signed
(`signer`), authorities are created, imported, loaded and retired (`authorities`), the log says in time which ends soon (`expiring`),
offline work is done with files only (`offline`), and revocation lists are published (`crls`).

What may not be done here: deciding who may have a certificate (that is `access`), parsing a protocol, or signing a certificate for a
workload by any other way than :meth:`handclasp.authority.signer.Signer.sign`. No private key leaves this room, and none is ever written
unencrypted.
"""

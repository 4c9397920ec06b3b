package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/url"
	"strings"

	_ "modernc.org/sqlite" // SQLite, translated to Go

	pb "indexer/gen/conversations/v1"
)

const schema = `
CREATE TABLE IF NOT EXISTS conversations (
	id            TEXT PRIMARY KEY,
	last_sequence INTEGER NOT NULL,
	metadata      TEXT NOT NULL -- JSON; null if there is none
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
	conversation_id TEXT NOT NULL,
	sequence        INTEGER NOT NULL,
	id              TEXT NOT NULL,
	type            TEXT NOT NULL,
	text            TEXT NOT NULL,
	PRIMARY KEY (conversation_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (
	only         INTEGER PRIMARY KEY CHECK (only = 1),
	resume_token TEXT NOT NULL
) STRICT;`

// index is a SQLite file with conversations, their items, and the token behind which the watch goes on.
type index struct{ db *sql.DB }

func openIndex(ctx context.Context, path string) (*index, error) {
	// After a loss of power the last transactions may be missing, but never a part of one. A transaction has rows and
	// their token, so what is missing is told again.
	query := url.Values{
		"_pragma": {"journal_mode(wal)", "synchronous(normal)", "busy_timeout(5000)"},
		"_txlock": {"immediate"},
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &index{db}, nil
}

func (x *index) close() error { return x.db.Close() }

// resumeToken returns the token that belongs to the rows, and none if they have never been complete.
func (x *index) resumeToken(ctx context.Context) (token string, err error) {
	err = x.db.QueryRowContext(ctx, "SELECT resume_token FROM progress").Scan(&token)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return token, err
}

// update runs change in a transaction.
func (x *index) update(ctx context.Context, change func(*rows) error) error {
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after a commit
	if err := change(&rows{ctx, tx}); err != nil {
		return err
	}
	return tx.Commit()
}

// rows are what a transaction sees. Writing the same again changes nothing.
type rows struct {
	ctx context.Context
	tx  *sql.Tx
}

func (r *rows) clear() error {
	return errors.Join(r.exec("DELETE FROM items"), r.exec("DELETE FROM conversations"))
}

func (r *rows) hasConversation(id string) (has bool, err error) {
	err = r.tx.QueryRowContext(r.ctx, "SELECT EXISTS (SELECT 1 FROM conversations WHERE id = ?)", id).Scan(&has)
	return has, err
}

// putConversation writes a conversation as it is. A listing may have seen it later than a message that was on its way
// meanwhile, so its `last_sequence` never falls.
func (r *rows) putConversation(conversation *pb.Conversation) error {
	metadata, err := json.Marshal(conversation.GetMetadata())
	if err != nil {
		return err
	}
	return r.exec(
		`INSERT INTO conversations (id, last_sequence, metadata) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET
			last_sequence = max(last_sequence, excluded.last_sequence), metadata = excluded.metadata`,
		conversation.GetId(), conversation.GetLastSequence(), string(metadata),
	)
}

func (r *rows) removeConversation(id string) error {
	return errors.Join(
		r.exec("DELETE FROM items WHERE conversation_id = ?", id),
		r.exec("DELETE FROM conversations WHERE id = ?", id),
	)
}

func (r *rows) putItem(conversationID string, item *pb.Item) error {
	return r.exec(
		"INSERT OR REPLACE INTO items (conversation_id, sequence, id, type, text) VALUES (?, ?, ?, ?, ?)",
		conversationID, item.GetSequence(), item.GetId(), typeOf(item), textOf(item),
	)
}

func (r *rows) removeItem(conversationID string, sequence int64) error {
	return r.exec("DELETE FROM items WHERE conversation_id = ? AND sequence = ?", conversationID, sequence)
}

func (r *rows) keepToken(token string) error {
	return r.exec("INSERT OR REPLACE INTO progress (only, resume_token) VALUES (1, ?)", token)
}

func (r *rows) exec(statement string, values ...any) error {
	_, err := r.tx.ExecContext(r.ctx, statement, values...)
	return err
}

// typeOf returns which body an item has; empty for one that the contract of this program does not know.
func typeOf(item *pb.Item) string {
	message := item.ProtoReflect()
	if body := message.WhichOneof(message.Descriptor().Oneofs().ByName("body")); body != nil {
		return string(body.Name())
	}
	return ""
}

// textOf returns what a user or a model said.
func textOf(item *pb.Item) string {
	var parts []string
	for _, part := range item.GetMessage().GetContent() {
		if text := part.GetInputText().GetText() + part.GetOutputText().GetText(); text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, "\n")
}

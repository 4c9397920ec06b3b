package interop;

import conversations.v1.Content;
import conversations.v1.InputText;
import conversations.v1.Role;
import conversations.v1.ToolOutput;
import conversations.v1.FunctionCall;
import conversations.v1.FunctionCallOutput;
import conversations.v1.Message;
import conversations.v1.Item;
import conversations.v1.NewItem;

/** Items to append. */
final class Items {

    private Items() {}

    /** A message of the user. */
    static NewItem text(String words) {
        Content content = Content.newBuilder().setInputText(InputText.newBuilder().setText(words)).build();
        return item(Item.newBuilder()
                .setMessage(Message.newBuilder().setRole(Role.ROLE_USER).addContent(content)));
    }

    static NewItem call(String callId, String name, String arguments) {
        return item(Item.newBuilder().setFunctionCall(
                FunctionCall.newBuilder().setCallId(callId).setName(name).setArguments(arguments)));
    }

    static NewItem output(String callId, String text) {
        return item(Item.newBuilder().setFunctionCallOutput(
                FunctionCallOutput.newBuilder().setCallId(callId).setOutput(ToolOutput.newBuilder().setText(text))));
    }

    private static NewItem item(Item.Builder item) {
        return NewItem.newBuilder().setItem(item).build();
    }
}
